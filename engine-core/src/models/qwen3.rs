//! Qwen3: per-head norms of q and k before the rotation; biases by configuration.

use crate::config::ModelConfig;
use crate::error::Result;
use crate::layers::decoder::{Bias, DecoderSpec};
use crate::layers::mlp::gated;

/// `attention_bias` covers q, k, v and o.
pub fn spec(c: &ModelConfig) -> Result<DecoderSpec> {
    let attention = Bias::when(c.attention_bias == Some(true));
    Ok(DecoderSpec {
        qkv_bias: attention,
        o_bias: attention,
        mlp_bias: Bias::No,
        qk_norm: true,
        act: gated(c)?,
    })
}
