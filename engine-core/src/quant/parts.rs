//! What the packed formats share: a part with its companions as bytes, and reading of bits and floats from them.

use half::{bf16, f16};

use super::host_bytes;
use crate::backend::{AuxKind, HostPart};
use crate::error::{Error, Result};
use crate::loader::HostBytes;
use crate::tensor::DType;

/// A companion of a part, in memory.
#[derive(Clone)]
pub(crate) struct Companion {
    pub bytes: HostBytes,
    pub dtype: DType,
    pub rows: usize,
    pub cols: usize,
}

impl Companion {
    /// Number `i` of a table of floats.
    pub fn float(&self, i: usize) -> f32 {
        float_at(&self.bytes, self.dtype, i)
    }

    /// Word `i` of a table of 32-bit words.
    pub fn word(&self, i: usize) -> u32 {
        word_at(&self.bytes, i)
    }
}

/// The bytes of a part and its [N, K].
pub(crate) struct Packed<'a> {
    pub part: &'a HostPart,
    pub bytes: HostBytes,
    pub n: usize,
    pub k: usize,
}

impl<'a> Packed<'a> {
    /// Reads `part`, which must hold `wanted_bytes` bytes.
    pub fn new(part: &'a HostPart, wanted_bytes: impl Fn(usize, usize) -> usize) -> Result<Self> {
        let bytes = host_bytes(&part.name, &part.data)?;
        let [n, k] = part.shape.map(|s| s as usize);
        if bytes.len() != wanted_bytes(n, k) {
            return Err(Error::Checkpoint(format!(
                "{}: {} bytes of {} for [{n}, {k}], wanted {}",
                part.name,
                bytes.len(),
                part.format,
                wanted_bytes(n, k)
            )));
        }
        Ok(Packed { part, bytes, n, k })
    }

    /// A companion that must be there, with this shape.
    pub fn companion(&self, kind: AuxKind, [rows, cols]: [usize; 2]) -> Result<Companion> {
        let found = self.optional(kind)?;
        match found {
            Some(c) if c.rows == rows && c.cols == cols => Ok(c),
            Some(c) => Err(Error::Checkpoint(format!(
                "{}: {kind:?} of shape [{}, {}]; [{rows}, {cols}] is wanted for [{}, {}] in {}",
                self.part.name, c.rows, c.cols, self.n, self.k, self.part.format
            ))),
            None => Err(Error::Checkpoint(format!("{}: has no {kind:?}", self.part.name))),
        }
    }

    /// A companion, if it is there.
    pub fn optional(&self, kind: AuxKind) -> Result<Option<Companion>> {
        let Some(aux) = self.part.aux.iter().find(|a| a.kind == kind) else { return Ok(None) };
        let bytes = host_bytes(&self.part.name, &aux.data)?;
        let [rows, cols] = aux.shape.map(|s| s as usize);
        if bytes.len() != rows * cols * aux.dtype.size_bytes() {
            return Err(Error::Checkpoint(format!(
                "{}: {kind:?} of {} bytes for [{rows}, {cols}] {}",
                self.part.name,
                bytes.len(),
                aux.dtype
            )));
        }
        Ok(Some(Companion { bytes, dtype: aux.dtype, rows, cols }))
    }
}

/// Float `i` of bytes of `dtype`.
pub(crate) fn float_at(bytes: &[u8], dtype: DType, i: usize) -> f32 {
    let at = i * dtype.size_bytes();
    match dtype {
        DType::F16 => f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32(),
        DType::Bf16 => bf16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32(),
        DType::I8 => f32::from(bytes[at] as i8),
        DType::U8 => f32::from(bytes[at]),
        DType::F8E4m3 => super::scaled::E4M3_VALUES[usize::from(bytes[at])],
        DType::F8E5m2 => super::scaled::e5m2(bytes[at]),
        DType::I32 => word_at(bytes, i) as i32 as f32,
        _ => f32::from_bits(word_at(bytes, i)),
    }
}

/// Little-endian word `i`.
pub(crate) fn word_at(bytes: &[u8], i: usize) -> u32 {
    let at = i * 4;
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Number `i` of a stream of numbers of `bits`, the lowest bits first, in words that `word` gives.
pub(crate) fn bits_at(bits: usize, i: usize, word: impl Fn(usize) -> u32) -> u8 {
    let (at, shift) = (i * bits / 32, i * bits % 32);
    let mut value = word(at) >> shift;
    if shift + bits > 32 {
        value |= word(at + 1) << (32 - shift);
    }
    (value & ((1 << bits) - 1)) as u8
}
