//! Architecture names of config.json and the family that runs each.

use super::{llama, mistral, qwen2, qwen3};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::layers::decoder::DecoderSpec;

/// One family: its name and how it reads a configuration.
#[derive(Clone, Copy)]
pub struct Family {
    pub architecture: &'static str,
    pub spec: fn(&ModelConfig) -> Result<DecoderSpec>,
}

/// Every architecture this build runs.
pub const FAMILIES: &[Family] = &[
    Family { architecture: "LlamaForCausalLM", spec: llama::spec },
    Family { architecture: "LLaMAForCausalLM", spec: llama::spec },
    Family { architecture: "MistralForCausalLM", spec: mistral::spec },
    Family { architecture: "Qwen2ForCausalLM", spec: qwen2::spec },
    Family { architecture: "Qwen3ForCausalLM", spec: qwen3::spec },
];

/// The family of the first known name in `architectures`.
///
/// # Errors
/// `Unsupported` with the list of what is known.
pub fn find(config: &ModelConfig) -> Result<&'static Family> {
    let known = |name: &String| FAMILIES.iter().find(|f| f.architecture == name.as_str());
    config.architectures.iter().find_map(known).ok_or_else(|| {
        let names: Vec<&str> = FAMILIES.iter().map(|f| f.architecture).collect();
        Error::Unsupported(format!(
            "config.json: architectures is {:?}; known architectures are {}",
            config.architectures,
            names.join(", ")
        ))
    })
}
