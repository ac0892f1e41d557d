//! Element types that stand in checkpoint files.

use crate::DType;

/// Element type of a tensor in a file. Wider than [`DType`]: a file may hold what no device computes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileDType {
    Bool,
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F16,
    Bf16,
    F32,
    F64,
    F8E4m3,
    F8E4m3fnuz,
    F8E5m2,
    F8E5m2fnuz,
    /// An exponent only; the block scale of MX formats.
    F8E8m0,
    /// Six-bit floats, four in three bytes.
    F6E2m3,
    F6E3m2,
    /// Four-bit floats, two in a byte.
    F4,
    C64,
}

impl FileDType {
    /// Every type, with its safetensors name.
    pub const ALL: [(FileDType, &'static str); 22] = [
        (FileDType::Bool, "BOOL"),
        (FileDType::U8, "U8"),
        (FileDType::I8, "I8"),
        (FileDType::U16, "U16"),
        (FileDType::I16, "I16"),
        (FileDType::U32, "U32"),
        (FileDType::I32, "I32"),
        (FileDType::U64, "U64"),
        (FileDType::I64, "I64"),
        (FileDType::F16, "F16"),
        (FileDType::Bf16, "BF16"),
        (FileDType::F32, "F32"),
        (FileDType::F64, "F64"),
        (FileDType::F8E4m3, "F8_E4M3"),
        (FileDType::F8E4m3fnuz, "F8_E4M3FNUZ"),
        (FileDType::F8E5m2, "F8_E5M2"),
        (FileDType::F8E5m2fnuz, "F8_E5M2FNUZ"),
        (FileDType::F8E8m0, "F8_E8M0"),
        (FileDType::F6E2m3, "F6_E2M3"),
        (FileDType::F6E3m2, "F6_E3M2"),
        (FileDType::F4, "F4"),
        (FileDType::C64, "C64"),
    ];

    /// The type of this safetensors name.
    pub fn from_safetensors(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, n)| *n == name).map(|(d, _)| *d)
    }

    /// Its name in a safetensors header.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(d, _)| *d == self).map_or("?", |(_, n)| n)
    }

    /// Size of one element in bits.
    pub const fn size_bits(self) -> u32 {
        use FileDType::*;
        match self {
            F4 => 4,
            F6E2m3 | F6E3m2 => 6,
            Bool | U8 | I8 | F8E4m3 | F8E4m3fnuz | F8E5m2 | F8E5m2fnuz | F8E8m0 => 8,
            U16 | I16 | F16 | Bf16 => 16,
            U32 | I32 | F32 => 32,
            U64 | I64 | F64 | C64 => 64,
        }
    }

    /// The device type with the same bits, where there is one.
    pub const fn device(self) -> Option<DType> {
        match self {
            FileDType::F32 => Some(DType::F32),
            FileDType::F16 => Some(DType::F16),
            FileDType::Bf16 => Some(DType::Bf16),
            FileDType::F8E4m3 => Some(DType::F8E4m3),
            FileDType::F8E5m2 => Some(DType::F8E5m2),
            FileDType::I8 => Some(DType::I8),
            FileDType::U8 | FileDType::Bool => Some(DType::U8),
            FileDType::I32 => Some(DType::I32),
            FileDType::U32 => Some(DType::U32),
            _ => None,
        }
    }
}

impl std::fmt::Display for FileDType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl From<DType> for FileDType {
    fn from(d: DType) -> Self {
        match d {
            DType::F32 => FileDType::F32,
            DType::F16 => FileDType::F16,
            DType::Bf16 => FileDType::Bf16,
            DType::F8E4m3 => FileDType::F8E4m3,
            DType::F8E5m2 => FileDType::F8E5m2,
            DType::I8 => FileDType::I8,
            DType::U8 => FileDType::U8,
            DType::I32 => FileDType::I32,
            DType::U32 => FileDType::U32,
        }
    }
}
