//! Transposing rows of a matrix into a panel: what loading weights costs beyond reading them.

use crate::weights::PANEL;

/// `rows[lane][i]` to `panel[i][lane]` in units of `B` bytes, one unit at a time, from unit `from` on.
///
/// # Panics
/// If a row is shorter than the first, or the panel than the rows.
pub(crate) fn plain<const B: usize>(rows: &[&[u8]; PANEL], panel: &mut [u8], from: usize) {
    let panel = panel.as_chunks_mut::<B>().0;
    let units = rows[0].len() / B;
    // A cache line of each row at a time.
    let block = 64 / B;
    for start in (from..units).step_by(block) {
        let block = block.min(units - start);
        for (lane, row) in rows.iter().enumerate() {
            let line = &row.as_chunks::<B>().0[start..start + block];
            for (i, unit) in line.iter().enumerate() {
                panel[(start + i) * PANEL + lane] = *unit;
            }
        }
    }
}

/// [`plain`] for units of four bytes (f32, pairs of bfloat16), with vectors where the machine has them.
///
/// # Panics
/// If a row is shorter than the first, or the panel than the rows.
pub(crate) fn words(rows: &[&[u8]; PANEL], panel: &mut [u8]) {
    let done = vectors(rows, panel);
    plain::<4>(rows, panel, done);
}

/// Units done.
#[cfg(target_arch = "x86_64")]
fn vectors(rows: &[&[u8]; PANEL], panel: &mut [u8]) -> usize {
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the instructions are there.
        return blocks::<16>(rows, panel, |from, to| unsafe { x86::square_16(from, to) });
    }
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the instructions are there.
        return blocks::<8>(rows, panel, |from, to| unsafe { x86::square_8(from, to) });
    }
    0
}

/// Units done.
#[cfg(not(target_arch = "x86_64"))]
fn vectors(_: &[&[u8]; PANEL], _: &mut [u8]) -> usize {
    0
}

/// Cuts rows and panel into squares of `W` by `W` words: `square` gets where each of its rows starts, and its place
/// in the panel, whose rows are [`PANEL`] words apart. Says how many units are done.
#[cfg(target_arch = "x86_64")]
fn blocks<const W: usize>(
    rows: &[&[u8]; PANEL],
    panel: &mut [u8],
    square: impl Fn([*const u8; W], *mut u8),
) -> usize {
    let units = rows[0].len() / 4 / W * W;
    assert!(rows.iter().all(|row| row.len() >= units * 4) && panel.len() >= units * PANEL * 4);
    for start in (0..units).step_by(W) {
        for lane in (0..PANEL).step_by(W) {
            // In bounds by the assertion: checking each row again costs a fifth of the time.
            let from = std::array::from_fn(|i| rows[lane + i].as_ptr().wrapping_add(start * 4));
            square(from, panel.as_mut_ptr().wrapping_add((start * PANEL + lane) * 4));
        }
    }
    units
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        _mm256_loadu_si256, _mm256_permute2x128_si256, _mm256_setzero_si256, _mm256_storeu_si256,
        _mm256_unpackhi_epi32, _mm256_unpackhi_epi64, _mm256_unpacklo_epi32, _mm256_unpacklo_epi64,
        _mm512_loadu_si512, _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_storeu_si512,
        _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
    };

    use super::PANEL;

    /// A square of 16 by 16 words.
    ///
    /// # Safety
    /// AVX-512 F; 64 bytes readable at each of `from`; 16 rows of 64 bytes, [`PANEL`] words apart, writable at `to`.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn square_16(from: [*const u8; 16], to: *mut u8) {
        let mut r = [_mm512_setzero_si512(); 16];
        for (row, p) in r.iter_mut().zip(from) {
            // SAFETY: the caller's.
            *row = unsafe { _mm512_loadu_si512(p.cast()) };
        }
        // t[4·g + j] holds, in each quarter q, words 4·q + j of rows 4·g to 4·g + 3.
        let mut t = [_mm512_setzero_si512(); 16];
        for g in (0..16).step_by(4) {
            let low = (_mm512_unpacklo_epi32(r[g], r[g + 1]), _mm512_unpacklo_epi32(r[g + 2], r[g + 3]));
            let high = (_mm512_unpackhi_epi32(r[g], r[g + 1]), _mm512_unpackhi_epi32(r[g + 2], r[g + 3]));
            t[g] = _mm512_unpacklo_epi64(low.0, low.1);
            t[g + 1] = _mm512_unpackhi_epi64(low.0, low.1);
            t[g + 2] = _mm512_unpacklo_epi64(high.0, high.1);
            t[g + 3] = _mm512_unpackhi_epi64(high.0, high.1);
        }
        for j in 0..4 {
            let (a, b, c, d) = (t[j], t[4 + j], t[8 + j], t[12 + j]);
            // Even quarters of rows 0 to 7 and 8 to 15, then odd ones.
            let even = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0x88>(c, d));
            let odd = (_mm512_shuffle_i32x4::<0xDD>(a, b), _mm512_shuffle_i32x4::<0xDD>(c, d));
            let quarters = [
                _mm512_shuffle_i32x4::<0x88>(even.0, even.1),
                _mm512_shuffle_i32x4::<0x88>(odd.0, odd.1),
                _mm512_shuffle_i32x4::<0xDD>(even.0, even.1),
                _mm512_shuffle_i32x4::<0xDD>(odd.0, odd.1),
            ];
            for (q, words) in quarters.into_iter().enumerate() {
                // SAFETY: the caller's.
                unsafe { _mm512_storeu_si512(to.add((4 * q + j) * PANEL * 4).cast(), words) };
            }
        }
    }

    /// A square of 8 by 8 words.
    ///
    /// # Safety
    /// AVX2; 32 bytes readable at each of `from`; 8 rows of 32 bytes, [`PANEL`] words apart, writable at `to`.
    #[target_feature(enable = "avx2")]
    pub unsafe fn square_8(from: [*const u8; 8], to: *mut u8) {
        let mut r = [_mm256_setzero_si256(); 8];
        for (row, p) in r.iter_mut().zip(from) {
            // SAFETY: the caller's.
            *row = unsafe { _mm256_loadu_si256(p.cast()) };
        }
        // t[4·g + j] holds, in each half h, words 4·h + j of rows 4·g to 4·g + 3.
        let mut t = [_mm256_setzero_si256(); 8];
        for g in (0..8).step_by(4) {
            let low = (_mm256_unpacklo_epi32(r[g], r[g + 1]), _mm256_unpacklo_epi32(r[g + 2], r[g + 3]));
            let high = (_mm256_unpackhi_epi32(r[g], r[g + 1]), _mm256_unpackhi_epi32(r[g + 2], r[g + 3]));
            t[g] = _mm256_unpacklo_epi64(low.0, low.1);
            t[g + 1] = _mm256_unpackhi_epi64(low.0, low.1);
            t[g + 2] = _mm256_unpacklo_epi64(high.0, high.1);
            t[g + 3] = _mm256_unpackhi_epi64(high.0, high.1);
        }
        for j in 0..4 {
            let halves = [
                _mm256_permute2x128_si256::<0x20>(t[j], t[4 + j]),
                _mm256_permute2x128_si256::<0x31>(t[j], t[4 + j]),
            ];
            for (h, words) in halves.into_iter().enumerate() {
                // SAFETY: the caller's.
                unsafe { _mm256_storeu_si256(to.add((4 * h + j) * PANEL * 4).cast(), words) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(units: usize) -> Vec<Vec<u8>> {
        let byte = |lane: usize, i: usize| (lane * 31 + i * 7 + i / 251) as u8;
        (0..PANEL).map(|lane| (0..units * 4).map(|i| byte(lane, i)).collect()).collect()
    }

    /// What `write` makes of rows of `units` words, against the definition.
    fn check(units: usize, write: impl Fn(&[&[u8]; PANEL], &mut [u8])) {
        let rows = rows(units);
        let borrowed: [&[u8]; PANEL] = std::array::from_fn(|lane| &rows[lane][..]);
        let mut panel = vec![0xEE; units * PANEL * 4 + 64];
        write(&borrowed, &mut panel);
        for i in 0..units {
            for (lane, row) in rows.iter().enumerate() {
                let at = (i * PANEL + lane) * 4;
                assert_eq!(panel[at..at + 4], row[i * 4..i * 4 + 4], "{units} units: {i}, {lane}");
            }
        }
        assert!(panel[units * PANEL * 4..].iter().all(|b| *b == 0xEE), "{units} units: written past the end");
    }

    #[test]
    fn every_way_is_the_definition() {
        for units in [0, 1, 7, 8, 15, 16, 17, 40, 64] {
            check(units, words);
            check(units, |rows, panel| plain::<4>(rows, panel, 0));
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2") {
                check(units, |rows, panel| {
                    // SAFETY: the instructions are there.
                    let done = blocks::<8>(rows, panel, |from, to| unsafe { x86::square_8(from, to) });
                    plain::<4>(rows, panel, done);
                });
            }
        }
    }
}
