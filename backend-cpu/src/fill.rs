//! Random weight values (`PartData::Fill`): element i follows from (seed, tensor, i) alone.
//!
//! The algorithm is engine-core's (`loader::fill`): the sum of the four 16-bit lanes of a SplitMix64 output, scaled
//! to the wanted deviation. `tensor` is the FNV-1a hash of the tensor's name.

use engine_core::DType;
use half::{bf16, f16};

/// The values of one random tensor.
#[derive(Clone, Copy)]
pub(crate) struct Values {
    key: u64,
    scale: f32,
    mean: f32,
}

impl Values {
    /// As `args::Fill` describes them.
    pub fn new(seed: u64, tensor: u64, std: f32, mean: f32) -> Self {
        let scale = (f64::from(std) * 3f64.sqrt() / 65536.0) as f32;
        Values { key: mix(mix(seed) ^ tensor), scale, mean }
    }

    /// Element `i`, rounded as `dtype` stores it.
    #[inline]
    pub fn rounded(&self, i: u64, dtype: DType) -> f32 {
        let bits = mix(self.key.wrapping_add((i.wrapping_add(1)).wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        let lanes = (bits & 0xFFFF) + (bits >> 16 & 0xFFFF) + (bits >> 32 & 0xFFFF) + (bits >> 48);
        let value = (lanes as i32 - 131_070) as f32 * self.scale + self.mean;
        match dtype {
            DType::Bf16 => bf16::from_f32(value).to_f32(),
            DType::F16 => f16::from_f32(value).to_f32(),
            _ => value,
        }
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
