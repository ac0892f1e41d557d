//! AMX: tiles of 16 rows × 64 bytes, and `tdpbf16ps`, which multiplies 16 × 32 bfloat16 by 32 × 16 into f32.
//!
//! A weight tile is 16 pairs of K × 16 outputs, which is just how panels lie in memory (see `crate::weights`): two
//! tiles side by side, 128 bytes from pair to pair. An activation tile is 16 rows × 32 steps of K, 1 KiB in one
//! piece. The compiler knows nothing of tile registers, so a whole loop over K is one piece of assembly: sums are
//! loaded (or zeroed) at its start and stored at its end. An output takes its products in the order of K (pairs,
//! the first of each before the second), whatever the number of rows or the cut of K, since storing sums as f32 and
//! loading them again changes nothing.
//!
//! Denormal inputs count as zero and denormal results become zero; `tdpbf16ps` has no other mode.

use core::arch::asm;
use std::sync::OnceLock;

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

/// `arch_prctl` asking for a part of the processor's state.
const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
/// The data of tile registers.
const XTILEDATA: libc::c_long = 18;

/// Whether the CPU has bfloat16 tiles and the system lets this process use them. Asks once; the permission then
/// holds for every thread.
pub(crate) fn is_permitted() -> bool {
    static PERMITTED: OnceLock<bool> = OnceLock::new();
    *PERMITTED.get_or_init(|| {
        let leaves = core::arch::x86_64::__cpuid(0).eax;
        if leaves < 7 {
            return false;
        }
        let edx = core::arch::x86_64::__cpuid_count(7, 0).edx;
        let (bf16, tile) = (edx >> 22 & 1 == 1, edx >> 24 & 1 == 1);
        // SAFETY: the call takes two numbers and touches no memory of ours; systems without it answer with an error.
        bf16 && tile && unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) } == 0
    })
}

/// Palette 1, all eight tiles of 16 rows × 64 bytes.
#[repr(C, align(64))]
struct Shapes([u8; 64]);

static SHAPES: Shapes = Shapes({
    let mut bytes = [0u8; 64];
    bytes[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        bytes[16 + 2 * tile] = 64;
        bytes[48 + tile] = ROWS as u8;
        tile += 1;
    }
    bytes
});

/// Tiles in use by this thread; given back when dropped, so that a switch of threads has no tiles to save.
pub(crate) struct Tiles(());

impl Tiles {
    /// Shapes this thread's tiles.
    ///
    /// # Safety
    /// [`is_permitted`] must have answered true.
    pub unsafe fn shape() -> Tiles {
        // SAFETY: the CPU has the instruction, by the caller's contract; 64 bytes are read.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &SHAPES, options(nostack, readonly)) };
        Tiles(())
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: only made where the CPU has tiles.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

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

/// 32 rows times a panel. Activations are read past the first-level cache, which the panel's block should keep.
///
/// # Safety
/// The thread has its [`Tiles`]; the operands of `r` are valid for `r.steps`.
pub(crate) unsafe fn multiply_32(r: &Run) {
    // SAFETY: the caller's contract; the loop ends after `steps` rounds, prefetches touch nothing.
    unsafe {
        asm!(
            "test {fresh:e}, {fresh:e}",
            "jz 2f",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "jmp 3f",
            "2:",
            "tileloadd tmm0, [{c} + {two} * 1]",
            "tileloadd tmm1, [{c} + {two} * 1 + 64]",
            "tileloadd tmm2, [{c} + {two} * 1 + 2048]",
            "tileloadd tmm3, [{c} + {two} * 1 + 2112]",
            "3:",
            "tileloaddt1 tmm4, [{a} + {one} * 1]",
            "tileloadd tmm6, [{b} + {two} * 1]",
            "tileloadd tmm7, [{b} + {two} * 1 + 64]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloaddt1 tmm5, [{second} + {one} * 1]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "mov {line}, {lines}",
            "test {line}, {line}",
            "jz 5f",
            "4:",
            "prefetcht1 [{ahead}]",
            "add {ahead}, 64",
            "dec {line}",
            "jnz 4b",
            "5:",
            "add {a}, 1024",
            "add {second}, 1024",
            "add {b}, 2048",
            "dec {steps}",
            "jnz 3b",
            "tilestored [{c} + {two} * 1], tmm0",
            "tilestored [{c} + {two} * 1 + 64], tmm1",
            "tilestored [{c} + {two} * 1 + 2048], tmm2",
            "tilestored [{c} + {two} * 1 + 2112], tmm3",
            a = inout(reg) r.a[0] => _,
            second = inout(reg) r.a[1] => _,
            b = inout(reg) r.b => _,
            steps = inout(reg) r.steps => _,
            c = in(reg) r.c,
            fresh = in(reg) u32::from(r.fresh),
            ahead = inout(reg) r.ahead => _,
            lines = in(reg) r.lines,
            line = out(reg) _,
            one = in(reg) 64usize,
            two = in(reg) 128usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// 16 rows (`r.a[0]`) times a panel.
///
/// # Safety
/// As of [`multiply_32`].
pub(crate) unsafe fn multiply_16(r: &Run) {
    // SAFETY: as above.
    unsafe {
        asm!(
            "test {fresh:e}, {fresh:e}",
            "jz 2f",
            "tilezero tmm0",
            "tilezero tmm1",
            "jmp 3f",
            "2:",
            "tileloadd tmm0, [{c} + {two} * 1]",
            "tileloadd tmm1, [{c} + {two} * 1 + 64]",
            "3:",
            "mov {line}, {lines}",
            "test {line}, {line}",
            "jz 5f",
            "4:",
            "prefetcht1 [{ahead}]",
            "add {ahead}, 64",
            "dec {line}",
            "jnz 4b",
            "5:",
            "tileloadd tmm4, [{a} + {one} * 1]",
            "tileloadd tmm6, [{b} + {two} * 1]",
            "tileloadd tmm7, [{b} + {two} * 1 + 64]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "add {a}, 1024",
            "add {b}, 2048",
            "dec {steps}",
            "jnz 3b",
            "tilestored [{c} + {two} * 1], tmm0",
            "tilestored [{c} + {two} * 1 + 64], tmm1",
            a = inout(reg) r.a[0] => _,
            b = inout(reg) r.b => _,
            steps = inout(reg) r.steps => _,
            c = in(reg) r.c,
            fresh = in(reg) u32::from(r.fresh),
            ahead = inout(reg) r.ahead => _,
            lines = in(reg) r.lines,
            line = out(reg) _,
            one = in(reg) 64usize,
            two = in(reg) 128usize,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// 16 rows (`r.a[0]`) times the panel and the one `next_panel` bytes on, whose sums follow the first's 16 rows. Both
/// are prefetched, into the first-level cache: `r.ahead` counts for the first, and two streams draw more from memory
/// than one.
///
/// # Safety
/// As of [`multiply_32`].
pub(crate) unsafe fn multiply_16x2(r: &Run, next_panel: usize) {
    // SAFETY: as above.
    unsafe {
        asm!(
            "test {fresh:e}, {fresh:e}",
            "jz 2f",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "jmp 3f",
            "2:",
            "tileloadd tmm0, [{c} + {two} * 1]",
            "tileloadd tmm1, [{c} + {two} * 1 + 64]",
            "tileloadd tmm2, [{c} + {two} * 1 + 2048]",
            "tileloadd tmm3, [{c} + {two} * 1 + 2112]",
            "3:",
            "mov {line:e}, 32",
            "4:",
            "prefetcht0 [{ahead}]",
            "prefetcht0 [{ahead} + {next}]",
            "add {ahead}, 64",
            "dec {line:e}",
            "jnz 4b",
            "tileloadd tmm4, [{a} + {one} * 1]",
            "tileloadd tmm6, [{b} + {two} * 1]",
            "tileloadd tmm7, [{b} + {two} * 1 + 64]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{second} + {two} * 1]",
            "tileloadd tmm6, [{second} + {two} * 1 + 64]",
            "tdpbf16ps tmm2, tmm4, tmm5",
            "tdpbf16ps tmm3, tmm4, tmm6",
            "add {a}, 1024",
            "add {b}, 2048",
            "add {second}, 2048",
            "dec {steps}",
            "jnz 3b",
            "tilestored [{c} + {two} * 1], tmm0",
            "tilestored [{c} + {two} * 1 + 64], tmm1",
            "tilestored [{c} + {two} * 1 + 2048], tmm2",
            "tilestored [{c} + {two} * 1 + 2112], tmm3",
            a = inout(reg) r.a[0] => _,
            b = inout(reg) r.b => _,
            second = inout(reg) r.b.wrapping_add(next_panel) => _,
            steps = inout(reg) r.steps => _,
            c = in(reg) r.c,
            fresh = in(reg) u32::from(r.fresh),
            ahead = inout(reg) r.ahead => _,
            next = in(reg) next_panel,
            line = out(reg) _,
            one = in(reg) 64usize,
            two = in(reg) 128usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// Four independent chains of products of zeros, `rounds` times: what the unit does at most.
///
/// # Safety
/// The thread has its [`Tiles`]; `rounds` is not 0.
pub(crate) unsafe fn multiply_peak(rounds: usize) {
    // SAFETY: only tile registers change.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "tilezero tmm4",
            "tilezero tmm5",
            "2:",
            "tdpbf16ps tmm0, tmm4, tmm5",
            "tdpbf16ps tmm1, tmm4, tmm5",
            "tdpbf16ps tmm2, tmm4, tmm5",
            "tdpbf16ps tmm3, tmm4, tmm5",
            "dec {rounds}",
            "jnz 2b",
            rounds = inout(reg) rounds => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _,
            options(nostack, nomem),
        );
    }
}
