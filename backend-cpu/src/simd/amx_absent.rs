//! AMX where there is none: the same names, never permitted.

pub(crate) use super::tiles::{ByteRuns, PANEL_STEP_BYTES, PEAK_OPS, ROWS, Run, STEPS, TILE_BYTES};

pub(crate) fn is_permitted() -> bool {
    false
}

pub(crate) struct Tiles(());

impl Tiles {
    pub unsafe fn shape() -> Tiles {
        unreachable!("no AMX on this target")
    }

    pub unsafe fn shape_bytes(_: usize) -> Tiles {
        unreachable!("no AMX on this target")
    }
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

pub(crate) fn has_bytes() -> bool {
    false
}

pub(crate) unsafe fn multiply_bytes(_: &ByteRuns) {
    unreachable!("no AMX on this target")
}

pub(crate) unsafe fn multiply_peak(_: usize) {
    unreachable!("no AMX on this target")
}
