//! The block formats of GGUF files: rows of blocks of 32 or 256 numbers, each block with its own scales.
//!
//! [`GgmlType::dequantize`] is the specification, written from the layout of each block as the `gguf` Python package
//! and ggml document it. A row of K numbers is K / [`GgmlType::block`] blocks one after the other; all fields are
//! little-endian; `d` and `m` are f16 unless said otherwise.

use half::f16;

use crate::error::{Error, Result};

/// A block format of GGUF.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GgmlType {
    /// 4 bits: d · (q - 8).
    Q4_0,
    /// 4 bits: d · q + m.
    Q4_1,
    /// 5 bits: d · (q - 16).
    Q5_0,
    /// 5 bits: d · q + m.
    Q5_1,
    /// 8 bits: d · q.
    Q8_0,
    /// 2 bits, 4-bit scales and minima of 16, in blocks of 256.
    Q2K,
    /// 3 bits, 6-bit scales of 16, in blocks of 256.
    Q3K,
    /// 4 bits, 6-bit scales and minima of 32, in blocks of 256.
    Q4K,
    /// 5 bits, 6-bit scales and minima of 32, in blocks of 256.
    Q5K,
    /// 6 bits, 8-bit scales of 16, in blocks of 256.
    Q6K,
    /// 4 bits over a table of 16 values.
    Iq4Nl,
    /// The same table, 6-bit scales of 32, in blocks of 256.
    Iq4Xs,
    /// OCP MX: e2m1 with a power of two for each 32.
    Mxfp4,
}

/// What IQ4_NL and IQ4_XS codes stand for.
pub const IQ4_VALUES: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0,
];

/// The sixteen numbers of e2m1.
pub const E2M1_VALUES: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Name, number in a file, numbers a block, bytes a block.
const TABLE: [(GgmlType, &str, u32, usize, usize); 13] = [
    (GgmlType::Q4_0, "Q4_0", 2, 32, 18),
    (GgmlType::Q4_1, "Q4_1", 3, 32, 20),
    (GgmlType::Q5_0, "Q5_0", 6, 32, 22),
    (GgmlType::Q5_1, "Q5_1", 7, 32, 24),
    (GgmlType::Q8_0, "Q8_0", 8, 32, 34),
    (GgmlType::Q2K, "Q2_K", 10, 256, 84),
    (GgmlType::Q3K, "Q3_K", 11, 256, 110),
    (GgmlType::Q4K, "Q4_K", 12, 256, 144),
    (GgmlType::Q5K, "Q5_K", 13, 256, 176),
    (GgmlType::Q6K, "Q6_K", 14, 256, 210),
    (GgmlType::Iq4Nl, "IQ4_NL", 20, 32, 18),
    (GgmlType::Iq4Xs, "IQ4_XS", 23, 256, 136),
    (GgmlType::Mxfp4, "MXFP4", 39, 32, 17),
];

impl GgmlType {
    /// Every format.
    pub const ALL: [GgmlType; 13] = {
        let mut all = [GgmlType::Q4_0; 13];
        let mut i = 0;
        while i < all.len() {
            all[i] = TABLE[i].0;
            i += 1;
        }
        all
    };

    fn row(self) -> &'static (GgmlType, &'static str, u32, usize, usize) {
        // Variants stand in the table in their own order.
        &TABLE[self as usize]
    }

    /// Its name in GGUF documents.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Numbers a block.
    pub fn block(self) -> usize {
        self.row().3
    }

    /// Bytes a block.
    pub fn block_bytes(self) -> usize {
        self.row().4
    }

    /// The format of this number in a GGUF tensor table.
    pub fn from_file_number(number: u32) -> Option<Self> {
        TABLE.iter().find(|row| row.2 == number).map(|row| row.0)
    }

    /// Its number in a GGUF tensor table.
    pub fn file_number(self) -> u32 {
        self.row().2
    }

    /// Bytes of `count` numbers; `None` when they are no whole number of blocks.
    pub fn bytes_of(self, count: u64) -> Option<u64> {
        let block = self.block() as u64;
        count.is_multiple_of(block).then(|| count / block * self.block_bytes() as u64)
    }

    /// All numbers of `bytes`.
    ///
    /// # Errors
    /// When `bytes` is no whole number of blocks.
    pub fn dequantize(self, bytes: &[u8]) -> Result<Vec<f32>> {
        if !bytes.len().is_multiple_of(self.block_bytes()) {
            return Err(Error::Checkpoint(format!(
                "{} bytes are no whole number of {} blocks of {}",
                bytes.len(),
                self.name(),
                self.block_bytes()
            )));
        }
        let mut out = Vec::with_capacity(bytes.len() / self.block_bytes() * self.block());
        for block in bytes.chunks_exact(self.block_bytes()) {
            self.dequantize_block(block, &mut out);
        }
        Ok(out)
    }

    fn dequantize_block(self, b: &[u8], out: &mut Vec<f32>) {
        match self {
            GgmlType::Q4_0 => small(out, |i| half_at(b, 0) * (nibble(&b[2..], i) - 8.0)),
            GgmlType::Q4_1 => small(out, |i| half_at(b, 0) * nibble(&b[4..], i) + half_at(b, 2)),
            GgmlType::Q5_0 => small(out, |i| half_at(b, 0) * (five(&b[2..], i) - 16.0)),
            GgmlType::Q5_1 => small(out, |i| half_at(b, 0) * five(&b[4..], i) + half_at(b, 2)),
            GgmlType::Q8_0 => small(out, |i| half_at(b, 0) * f32::from(b[2 + i] as i8)),
            GgmlType::Iq4Nl => small(out, |i| half_at(b, 0) * IQ4_VALUES[nibble(&b[2..], i) as usize]),
            GgmlType::Mxfp4 => small(out, |i| e8m0(b[0]) * E2M1_VALUES[nibble(&b[1..], i) as usize]),
            GgmlType::Q2K => q2_k(b, out),
            GgmlType::Q3K => q3_k(b, out),
            GgmlType::Q4K => q4_k(b, out),
            GgmlType::Q5K => q5_k(b, out),
            GgmlType::Q6K => q6_k(b, out),
            GgmlType::Iq4Xs => iq4_xs(b, out),
        }
    }
}

impl std::fmt::Display for GgmlType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The f16 at byte `at`.
pub(crate) fn half_at(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

/// 2^(e - 127); e = 0 is the subnormal 2^-127.
pub(crate) fn e8m0(e: u8) -> f32 {
    f32::from_bits(if e == 0 { 0x0040_0000 } else { u32::from(e) << 23 })
}

/// Scale and minimum `j` of the 12 packed bytes that Q4_K and Q5_K share.
pub(crate) fn scale_min(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        let low = packed[j + 4];
        ((low & 15) | (packed[j - 4] >> 6 << 4), (low >> 4) | (packed[j] >> 6 << 4))
    }
}

/// Scale `i` of the 12 packed bytes of Q3_K, still offset by 32.
pub(crate) fn scale_q3(packed: &[u8], i: usize) -> u8 {
    let low = if i < 8 { packed[i] & 15 } else { packed[i - 8] >> 4 };
    low | (packed[8 + i % 4] >> (2 * (i / 4)) & 3) << 4
}

fn small(out: &mut Vec<f32>, value: impl Fn(usize) -> f32) {
    out.extend((0..32).map(value));
}

/// Code `i` of 32 that lie as 16 bytes: first half in the low nibbles, second half in the high ones.
fn nibble(codes: &[u8], i: usize) -> f32 {
    f32::from(if i < 16 { codes[i] & 15 } else { codes[i - 16] >> 4 })
}

/// The same with the fifth bits in 4 bytes before.
fn five(b: &[u8], i: usize) -> f32 {
    let high = u32::from_le_bytes([b[0], b[1], b[2], b[3]]) >> i & 1;
    nibble(&b[4..], i) + 16.0 * high as f32
}

fn q2_k(b: &[u8], out: &mut Vec<f32>) {
    let (scales, codes, d, min) = (&b[..16], &b[16..80], half_at(b, 80), half_at(b, 82));
    for i in 0..256 {
        let code = codes[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
        let scale = scales[i / 16];
        out.push(d * f32::from(scale & 15) * f32::from(code) - min * f32::from(scale >> 4));
    }
}

fn q3_k(b: &[u8], out: &mut Vec<f32>) {
    let (high, codes, scales, d) = (&b[..32], &b[32..96], &b[96..108], half_at(b, 108));
    for i in 0..256 {
        let low = codes[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
        let set = high[i % 32] >> (i / 32) & 1;
        let code = f32::from(low) - if set == 1 { 0.0 } else { 4.0 };
        out.push(d * (f32::from(scale_q3(scales, i / 16)) - 32.0) * code);
    }
}

fn q4_k(b: &[u8], out: &mut Vec<f32>) {
    let (d, min, packed, codes) = (half_at(b, 0), half_at(b, 2), &b[4..16], &b[16..144]);
    for i in 0..256 {
        let byte = codes[i / 64 * 32 + i % 32];
        let code = if i % 64 < 32 { byte & 15 } else { byte >> 4 };
        let (scale, m) = scale_min(packed, i / 32);
        out.push(d * f32::from(scale) * f32::from(code) - min * f32::from(m));
    }
}

fn q5_k(b: &[u8], out: &mut Vec<f32>) {
    let (d, min, packed) = (half_at(b, 0), half_at(b, 2), &b[4..16]);
    let (high, codes) = (&b[16..48], &b[48..176]);
    for i in 0..256 {
        let byte = codes[i / 64 * 32 + i % 32];
        let low = if i % 64 < 32 { byte & 15 } else { byte >> 4 };
        let code = low | (high[i % 32] >> (i / 32) & 1) << 4;
        let (scale, m) = scale_min(packed, i / 32);
        out.push(d * f32::from(scale) * f32::from(code) - min * f32::from(m));
    }
}

fn q6_k(b: &[u8], out: &mut Vec<f32>) {
    let (low, high, scales, d) = (&b[..128], &b[128..192], &b[192..208], half_at(b, 208));
    for i in 0..256 {
        let (half, quarter, l) = (i / 128, i % 128 / 32, i % 32);
        let byte = low[half * 64 + quarter % 2 * 32 + l];
        let nibble = if quarter < 2 { byte & 15 } else { byte >> 4 };
        let code = nibble | (high[half * 32 + l] >> (2 * quarter) & 3) << 4;
        out.push(d * f32::from(scales[i / 16] as i8) * (f32::from(code) - 32.0));
    }
}

fn iq4_xs(b: &[u8], out: &mut Vec<f32>) {
    let (d, high, low) = (half_at(b, 0), u16::from_le_bytes([b[2], b[3]]), &b[4..8]);
    for (i, codes) in b[8..136].chunks_exact(16).enumerate() {
        let scale = (low[i / 2] >> (4 * (i % 2)) & 15) | ((high >> (2 * i) & 3) as u8) << 4;
        let scale = d * (f32::from(scale) - 32.0);
        out.extend((0..32).map(|j| scale * IQ4_VALUES[nibble(codes, j) as usize]));
    }
}
