//! Qwen2 and Qwen2.5: biases on q, k and v; upper layers may have a window (`use_sliding_window`).

use crate::config::ModelConfig;
use crate::error::Result;
use crate::layers::decoder::{Bias, DecoderSpec};
use crate::layers::mlp::gated;

/// q, k and v always carry a bias; nothing else does.
pub fn spec(c: &ModelConfig) -> Result<DecoderSpec> {
    Ok(DecoderSpec {
        qkv_bias: Bias::Yes,
        o_bias: Bias::No,
        mlp_bias: Bias::No,
        qk_norm: false,
        act: gated(c)?,
    })
}
