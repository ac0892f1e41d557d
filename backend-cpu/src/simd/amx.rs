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

pub(crate) use super::tiles::{ByteRuns, PANEL_STEP_BYTES, PEAK_OPS, ROWS, Run, STEPS, TILE_BYTES};

/// `arch_prctl` asking for a part of the processor's state.
const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
/// The data of tile registers.
const XTILEDATA: libc::c_long = 18;

/// Whether the CPU has bfloat16 tiles and the system lets this process use them. Asks once; the permission then
/// holds for every thread.
pub(crate) fn is_permitted() -> bool {
    static PERMITTED: OnceLock<bool> = OnceLock::new();
    *PERMITTED.get_or_init(|| {
        let (bf16, tile) = (has(22), has(24));
        // SAFETY: the call takes two numbers and touches no memory of ours; systems without it answer with an error.
        bf16 && tile && unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) } == 0
    })
}

/// Whether there are products of bytes too.
pub(crate) fn has_bytes() -> bool {
    static BYTES: OnceLock<bool> = OnceLock::new();
    *BYTES.get_or_init(|| has(25) && is_permitted())
}

/// A bit of what leaf 7 of `cpuid` says in edx.
fn has(bit: u32) -> bool {
    let leaves = core::arch::x86_64::__cpuid(0).eax;
    leaves >= 7 && core::arch::x86_64::__cpuid_count(7, 0).edx >> bit & 1 == 1
}

/// Palette 1, all eight tiles of 16 rows × 64 bytes.
#[repr(C, align(64))]
struct Shapes([u8; 64]);

static SHAPES: Shapes = Shapes::of(64);
/// Activations (tiles 4 and 5) of 32 bytes a row, codes (tiles 6 and 7) of eight rows.
static HALVES: Shapes = Shapes::of(32);

impl Shapes {
    /// All tiles of 16 rows × 64 bytes, but for activations of `step` bytes a row and codes to match.
    const fn of(step: u8) -> Shapes {
        let mut bytes = [0u8; 64];
        bytes[0] = 1;
        let mut tile = 0;
        while tile < 8 {
            bytes[16 + 2 * tile] = if tile == 4 || tile == 5 { step } else { 64 };
            bytes[48 + tile] = if tile >= 6 { step / 4 } else { ROWS as u8 };
            tile += 1;
        }
        Shapes(bytes)
    }
}

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

    /// For [`multiply_bytes`] with steps of `step_bytes`, 32 or 64.
    ///
    /// # Safety
    /// As of [`Tiles::shape`].
    pub unsafe fn shape_bytes(step_bytes: usize) -> Tiles {
        let shapes = if step_bytes == 64 { &SHAPES } else { &HALVES };
        // SAFETY: as above.
        unsafe { asm!("ldtilecfg [{}]", in(reg) shapes, options(nostack, readonly)) };
        Tiles(())
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: only made where the CPU has tiles.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// Four tiles of sums, [32][32] or twice [16][32], from zero or from where they were stored.
macro_rules! start_four {
    () => {
        "test {fresh:e}, {fresh:e}
        jz 2f
        tilezero tmm0
        tilezero tmm1
        tilezero tmm2
        tilezero tmm3
        jmp 3f
        2:
        tileloadd tmm0, [{c} + {two} * 1]
        tileloadd tmm1, [{c} + {two} * 1 + 64]
        tileloadd tmm2, [{c} + {two} * 1 + 2048]
        tileloadd tmm3, [{c} + {two} * 1 + 2112]"
    };
}

macro_rules! store_four {
    () => {
        "tilestored [{c} + {two} * 1], tmm0
        tilestored [{c} + {two} * 1 + 64], tmm1
        tilestored [{c} + {two} * 1 + 2048], tmm2
        tilestored [{c} + {two} * 1 + 2112], tmm3"
    };
}

/// The activation tile of the next step, into the first-level cache.
macro_rules! next_tile {
    ($at:literal) => {
        next_tile!($at, "1024" "1088" "1152" "1216" "1280" "1344" "1408" "1472" "1536" "1600" "1664" "1728" "1792"
            "1856" "1920" "1984")
    };
    ($at:literal, $($line:literal)*) => {
        concat!($("prefetcht0 [{", $at, "} + ", $line, "]\n"),*)
    };
}

/// 32 rows times a panel.
///
/// # Safety
/// The thread has its [`Tiles`]; the operands of `r` are valid for `r.steps`.
pub(crate) unsafe fn multiply_32(r: &Run) {
    // SAFETY: the caller's contract; the loop ends after `steps` rounds, prefetches touch nothing.
    unsafe {
        asm!(
            start_four!(),
            "3:",
            "tileloadd tmm4, [{a} + {one} * 1]",
            "tileloadd tmm5, [{second} + {one} * 1]",
            "tileloadd tmm6, [{b} + {two} * 1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tileloadd tmm7, [{b} + {two} * 1 + 64]",
            next_tile!("a"),
            next_tile!("second"),
            "tdpbf16ps tmm1, tmm4, tmm7",
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
            store_four!(),
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
            start_four!(),
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
            store_four!(),
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

macro_rules! multiply_bytes {
    ($product:literal, $r:expr) => {
        asm!(
            "2:",
            "tilezero tmm0",
            "mov {left}, {steps}",
            "3:",
            "tileloadd tmm4, [{a} + {row} * 1]",
            "tileloadd tmm6, [{b} + {line} * 1]",
            $product,
            "add {a}, {a_step}",
            "add {b}, {a_step}",
            "dec {left}",
            "jnz 3b",
            "tilestored [{c} + {line} * 1], tmm0",
            "add {c}, 1024",
            "dec {runs}",
            "jnz 2b",
            a = inout(reg) $r.a => _,
            b = inout(reg) $r.b => _,
            c = inout(reg) $r.c => _,
            runs = inout(reg) $r.runs => _,
            steps = in(reg) $r.steps,
            left = out(reg) _,
            row = in(reg) $r.step_bytes,
            a_step = in(reg) $r.step_bytes * ROWS,
            line = in(reg) 64usize,
            out("tmm0") _, out("tmm4") _, out("tmm6") _,
            options(nostack),
        )
    };
}

macro_rules! one_run {
    ($a:literal, $b:literal, $c:literal, $product:literal) => {
        concat!(
            "tileloadd tmm",
            $a,
            ", [{a} + {row} * 1]\n",
            "tileloadd tmm",
            $b,
            ", [{b} + {line} * 1]\n",
            $product,
            " tmm",
            $c,
            ", tmm",
            $a,
            ", tmm",
            $b,
            "\n",
            "add {a}, {a_step}\n",
            "add {b}, {a_step}"
        )
    };
}

macro_rules! multiply_four_runs {
    ($product:literal, $r:expr) => {
        asm!(
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            one_run!("4", "6", "0", $product),
            one_run!("5", "7", "1", $product),
            one_run!("4", "6", "2", $product),
            one_run!("5", "7", "3", $product),
            "tilestored [{c} + {line} * 1], tmm0",
            "tilestored [{c} + {line} * 1 + 1024], tmm1",
            "tilestored [{c} + {line} * 1 + 2048], tmm2",
            "tilestored [{c} + {line} * 1 + 3072], tmm3",
            "add {c}, 4096",
            "sub {runs}, 4",
            "jnz 2b",
            a = inout(reg) $r.a => _,
            b = inout(reg) $r.b => _,
            c = inout(reg) $r.c => _,
            runs = inout(reg) $r.runs => _,
            row = in(reg) $r.step_bytes,
            a_step = in(reg) $r.step_bytes * ROWS,
            line = in(reg) 64usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

/// The sums of each run of 16 rows with 16 outputs; four runs at a time where they are of one step, since a sum is
/// long on its way from the first load to its store.
///
/// # Safety
/// The thread has [`Tiles::shape_bytes`] of `r.step_bytes`, the CPU [`has_bytes`], and the operands of `r`, at least one
/// run of one step, are valid.
pub(crate) unsafe fn multiply_bytes(r: &ByteRuns) {
    let four = r.steps == 1 && r.runs.is_multiple_of(4);
    // SAFETY: the caller's contract; all loops end.
    unsafe {
        match (four, r.signed) {
            (true, true) => multiply_four_runs!("tdpbssd", r),
            (true, false) => multiply_four_runs!("tdpbsud", r),
            (false, true) => multiply_bytes!("tdpbssd tmm0, tmm4, tmm6", r),
            (false, false) => multiply_bytes!("tdpbsud tmm0, tmm4, tmm6", r),
        }
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
