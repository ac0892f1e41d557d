//! What this machine can do at most, to put beside what the engine does: bytes read from memory in a second, and
//! multiply-adds in a second. Measured on the CPUs and with the instruction set that the kernels use; memory is of
//! huge pages, as weights are.
//!
//! The best of several runs counts: other work on the machine can only slow a run, and a limit that is too low
//! would flatter the engine.

use std::sync::{Arc, Barrier};
use std::time::Instant;

use engine_core::Result;

use crate::backend::CpuBackend;
use crate::memory::{Memory, Region};
use crate::simd::{Simd, SimdPath, Vectorized, amx, enter};
use crate::topology;

/// Limits of the machine, all threads together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    pub threads: usize,
    /// Instruction set of both loops.
    pub path: SimdPath,
    /// Memory that was read over and over; far larger than a cache, so that it comes from DRAM.
    pub memory_bytes: u64,
    /// Best of several passes.
    pub read_bytes_per_s: f64,
    /// Two per product: the widest multiply-add of the path, in registers only. On the AMX path that is the tile product
    /// of bfloat16, which f32 and f16 weights do not use.
    pub flop_per_s: f64,
}

/// Passes over the memory, and runs of the multiply loop.
const RUNS: usize = 5;
/// Rounds of the multiply loop: some tens of milliseconds.
const ROUNDS: usize = 8_000_000;
/// Rounds of the loop over AMX tiles: as long.
const TILE_ROUNDS: usize = 2_000_000;
/// Accumulators: enough to hide the latency of two multiply-adds a cycle, few enough for 16 registers.
const CHAINS: usize = 12;

impl CpuBackend {
    /// Measures; takes about a second. `memory_bytes` is taken for that time.
    ///
    /// # Errors
    /// `OutOfMemory` when there is not so much memory.
    pub fn measure_limits(&self, memory_bytes: usize) -> Result<Limits> {
        let (cpus, path) = (self.cpus(), self.path());
        let hint = "free some memory";
        let part_bytes = (memory_bytes / cpus.len()).next_multiple_of(2 << 20);
        let memory = Arc::new(Memory::default());
        let parts = cpus
            .iter()
            .map(|_| memory.allocate(part_bytes, "measuring memory", hint))
            .collect::<Result<Vec<_>>>()?;
        // Untouched pages are all one page of zeros, which would be read from the cache.
        best(cpus, 1, |i| fill(&parts[i]));
        let read_s = best(cpus, RUNS, |i| read(&parts[i], path));
        let multiply_s = best(cpus, RUNS, |_| multiply(path));
        let threads = cpus.len();
        let total_bytes = part_bytes * threads;
        Ok(Limits {
            threads,
            path,
            memory_bytes: total_bytes as u64,
            read_bytes_per_s: total_bytes as f64 / read_s,
            flop_per_s: flops(path) * threads as f64 / multiply_s,
        })
    }
}

/// Seconds of the fastest of `runs` runs of `work` on every CPU at once: from the first start to the last end, as
/// the workers themselves see it.
fn best(cpus: &[Option<usize>], runs: usize, work: impl Fn(usize) + Sync) -> f64 {
    let gate = Barrier::new(cpus.len());
    let times = |i: usize, cpu: Option<usize>| {
        if let Some(cpu) = cpu {
            topology::pin_to(cpu);
        }
        let timed = |_| {
            gate.wait();
            let start = Instant::now();
            work(i);
            (start, Instant::now())
        };
        (0..runs).map(timed).collect::<Vec<_>>()
    };
    let all: Vec<Vec<(Instant, Instant)>> = std::thread::scope(|scope| {
        let start = |(i, cpu): (usize, &Option<usize>)| {
            let (times, cpu) = (&times, *cpu);
            scope.spawn(move || times(i, cpu))
        };
        let workers: Vec<_> = cpus.iter().enumerate().map(start).collect();
        workers.into_iter().filter_map(|worker| worker.join().ok()).collect()
    });
    let seconds = |run: usize| {
        let starts = all.iter().map(|times| times[run].0).min();
        let ends = all.iter().map(|times| times[run].1).max();
        starts.zip(ends).map_or(f64::INFINITY, |(start, end)| (end - start).as_secs_f64())
    };
    (0..runs).map(seconds).fold(f64::INFINITY, f64::min)
}

fn fill(part: &Region) {
    // SAFETY: the region is ours alone until it is read, by this very thread's successor.
    unsafe { std::ptr::write_bytes(part.base(), 1, part.len()) };
}

fn read(part: &Region, path: SimdPath) {
    let words = Read { from: part.base().cast(), count: part.len() / 4 };
    // SAFETY: the machine has the path of its backend; the region holds `count` words and nobody writes.
    std::hint::black_box(unsafe { enter(path, words) });
}

fn multiply(path: SimdPath) {
    if path == SimdPath::Amx {
        // SAFETY: the machine has the path of its backend.
        unsafe {
            let tiles = amx::Tiles::shape();
            amx::multiply_peak(TILE_ROUNDS);
            drop(tiles);
        }
        return;
    }
    // SAFETY: the machine has the path of its backend.
    std::hint::black_box(unsafe { enter(path, Multiply) });
}

/// Operations of one [`Multiply`].
fn flops(path: SimdPath) -> f64 {
    if path == SimdPath::Amx {
        return (amx::PEAK_OPS * TILE_ROUNDS) as f64;
    }
    // SAFETY: the machine has the path of its backend.
    let per_instruction = unsafe { enter(path, OpsPerInstruction) };
    (per_instruction * ROUNDS * CHAINS) as f64
}

/// Exclusive or of all words.
struct Read {
    from: *const u32,
    count: usize,
}

impl Vectorized for Read {
    type Output = u32;
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> u32 {
        const STEPS: usize = 8;
        // SAFETY: the module's contract; every load ends at or before `count`.
        unsafe {
            let mut sums = [S::isplat(0); STEPS];
            let mut at = 0;
            while at + STEPS * S::W <= self.count {
                for (step, sum) in sums.iter_mut().enumerate() {
                    *sum = S::ixor(*sum, S::iload(self.from.add(at + step * S::W)));
                }
                at += STEPS * S::W;
            }
            let all = sums.into_iter().fold(S::isplat(0), |a, b| S::ixor(a, b));
            let mut lanes = [0u32; 64];
            S::istore(lanes.as_mut_ptr(), all);
            lanes.into_iter().fold(0, |a, b| a ^ b)
        }
    }
}

/// Independent chains of the widest multiply-add, in registers.
struct Multiply;

impl Vectorized for Multiply {
    type Output = f32;
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        // SAFETY: the module's contract; no memory is touched.
        unsafe {
            let (x, pair) =
                (S::splat(std::hint::black_box(1e-9)), S::isplat(std::hint::black_box(0x3089_3089)));
            let mut sums = [S::zero(); CHAINS];
            for _ in 0..ROUNDS {
                for sum in &mut sums {
                    *sum = if S::DOT { S::dot_bf16(*sum, pair, pair) } else { S::fma(x, x, *sum) };
                }
            }
            sums.into_iter().map(|sum| S::sum(sum)).sum()
        }
    }
}

/// Multiplications and additions of one multiply-add instruction.
struct OpsPerInstruction;

impl Vectorized for OpsPerInstruction {
    type Output = usize;
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> usize {
        if S::DOT { 4 * S::W } else { 2 * S::W }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::backend::{CpuConfig, SimdChoice};

    #[test]
    fn every_path_has_limits_in_a_sane_range() {
        for path in SimdPath::available() {
            let config = CpuConfig { threads: Some(1), simd: SimdChoice::Forced(path) };
            let limits = CpuBackend::new(config).unwrap().measure_limits(64 << 20).unwrap();
            assert_eq!((limits.threads, limits.path, limits.memory_bytes), (1, path, 64 << 20));
            // From a machine under heavy load to one from the future.
            assert!((1e7..1e13).contains(&limits.read_bytes_per_s), "{limits:?}");
            assert!((1e7..1e14).contains(&limits.flop_per_s), "{limits:?}");
        }
    }

    #[test]
    fn every_word_is_read() {
        let words: Vec<u32> = (0..8 * 64).map(|i| 1 << (i % 32)).collect();
        for path in SimdPath::available() {
            // SAFETY: the path is available and the vector outlives the call.
            let all = |v: &[u32]| unsafe { enter(path, Read { from: v.as_ptr(), count: v.len() }) };
            assert_eq!(all(&words), 0, "{path:?}: each bit is set an even number of times");
            for i in [0, 63, 200, words.len() - 1] {
                let mut odd = words.clone();
                odd[i] ^= 0x8000_0001;
                assert_eq!(all(&odd), 0x8000_0001, "{path:?}: word {i}");
            }
        }
    }

    #[test]
    fn too_much_memory_is_refused() {
        let backend = CpuBackend::new(CpuConfig { threads: Some(1), ..CpuConfig::default() }).unwrap();
        assert!(backend.measure_limits(1 << 50).unwrap_err().to_string().contains("measuring memory"));
    }
}
