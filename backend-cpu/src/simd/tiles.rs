//! Sizes of AMX tiles and what loops over them are given, on every target: see [`super::amx`].

/// Rows of an activation tile.
pub(crate) const ROWS: usize = 16;
/// Steps of K of a tile.
pub(crate) const STEPS: usize = 32;
/// Bytes of an activation tile.
pub(crate) const TILE_BYTES: usize = ROWS * STEPS * 2;
/// Bytes of a panel that a step of [`STEPS`] of K reads.
pub(crate) const PANEL_STEP_BYTES: usize = STEPS * crate::weights::PANEL * 2;
/// Operations of a round of [`multiply_peak`].
pub(crate) const PEAK_OPS: usize = 4 * ROWS * 16 * STEPS * 2;

/// Operands of one loop over K.
#[derive(Clone, Copy)]
pub(crate) struct Run {
    /// Activation tiles of successive steps; of the second 16 rows likewise.
    pub a: [*const u8; 2],
    /// The panel, from the first step on.
    pub b: *const u8,
    /// Steps of 32 of K, at least one.
    pub steps: usize,
    /// [16 or 32][32] f32.
    pub c: *mut f32,
    /// Whether the sums start at zero.
    pub fresh: bool,
    /// Bytes to bring into the second-level cache meanwhile: `lines` of 64 bytes a step.
    pub ahead: *const u8,
    pub lines: usize,
}

/// Operands of products of bytes.
#[derive(Clone, Copy)]
pub(crate) struct ByteRuns {
    /// Activations, signed: [step][16 rows][bytes of a step].
    pub a: *const u8,
    /// Codes: [quad of K][16 outputs][4].
    pub b: *const u8,
    /// [run][16][16] i32.
    pub c: *mut i32,
    pub runs: usize,
    /// Steps of a run, and their bytes: 32 or 64.
    pub steps: usize,
    pub step_bytes: usize,
    /// Whether codes are signed.
    pub signed: bool,
}
