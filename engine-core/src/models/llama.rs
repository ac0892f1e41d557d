//! Llama 1 to 3.x and everything that calls itself one: CodeLlama, TinyLlama, SmolLM2, Yi, DeepSeek-R1-Distill.

use crate::config::ModelConfig;
use crate::error::Result;
use crate::layers::decoder::{Bias, DecoderSpec};
use crate::layers::mlp::gated;

/// Biases by configuration (`attention_bias`, `mlp_bias`), none by default.
pub fn spec(c: &ModelConfig) -> Result<DecoderSpec> {
    let attention = Bias::when(c.attention_bias == Some(true));
    Ok(DecoderSpec {
        qkv_bias: attention,
        o_bias: attention,
        mlp_bias: Bias::when(c.mlp_bias),
        qk_norm: false,
        act: gated(c)?,
    })
}
