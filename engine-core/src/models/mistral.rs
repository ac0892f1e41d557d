//! Mistral: a Llama without biases whose layers may look back over a window only (`sliding_window`).

use crate::config::ModelConfig;
use crate::error::Result;
use crate::layers::decoder::{Bias, DecoderSpec};
use crate::layers::mlp::gated;

/// No bias anywhere; windows come from the configuration.
pub fn spec(c: &ModelConfig) -> Result<DecoderSpec> {
    Ok(DecoderSpec {
        qkv_bias: Bias::No,
        o_bias: Bias::No,
        mlp_bias: Bias::No,
        qk_norm: false,
        act: gated(c)?,
    })
}
