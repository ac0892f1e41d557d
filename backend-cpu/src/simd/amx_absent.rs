//! AMX where there is none: the same names, never permitted.

pub(crate) const ROWS: usize = 16;
pub(crate) const STEPS: usize = 32;
pub(crate) const TILE_BYTES: usize = ROWS * STEPS * 2;
pub(crate) const PANEL_STEP_BYTES: usize = STEPS * crate::weights::PANEL * 2;
pub(crate) const PEAK_OPS: usize = 4 * ROWS * 16 * STEPS * 2;

pub(crate) fn is_permitted() -> bool {
    false
}

pub(crate) struct Tiles(());

impl Tiles {
    pub unsafe fn shape() -> Tiles {
        unreachable!("no AMX on this target")
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Run {
    pub a: [*const u8; 2],
    pub b: *const u8,
    pub steps: usize,
    pub c: *mut f32,
    pub fresh: bool,
    pub ahead: *const u8,
    pub lines: usize,
}

pub(crate) unsafe fn multiply_32(_: &Run) {
    unreachable!("no AMX on this target")
}

pub(crate) unsafe fn multiply_16(_: &Run) {
    unreachable!("no AMX on this target")
}

pub(crate) unsafe fn multiply_16x2(_: &Run, _: usize) {
    unreachable!("no AMX on this target")
}

pub(crate) unsafe fn multiply_peak(_: usize) {
    unreachable!("no AMX on this target")
}
