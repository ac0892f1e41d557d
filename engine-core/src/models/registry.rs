//! Architecture names of config.json and the family that runs each.

use super::{llama, mistral, qwen2, qwen3};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::layers::decoder::DecoderSpec;

/// One family: its name and how it reads a configuration.
#[derive(Clone, Copy)]
pub struct Family {
    /// Name in `architectures`.
    pub architecture: &'static str,
    /// Name in `model_type`, for configurations that list no architecture.
    pub model_type: &'static str,
    pub spec: fn(&ModelConfig) -> Result<DecoderSpec>,
}

/// Every architecture this build runs.
pub const FAMILIES: &[Family] = &[
    Family { architecture: "LlamaForCausalLM", model_type: "llama", spec: llama::spec },
    Family { architecture: "LLaMAForCausalLM", model_type: "llama", spec: llama::spec },
    Family { architecture: "MistralForCausalLM", model_type: "mistral", spec: mistral::spec },
    Family { architecture: "Qwen2ForCausalLM", model_type: "qwen2", spec: qwen2::spec },
    Family { architecture: "Qwen3ForCausalLM", model_type: "qwen3", spec: qwen3::spec },
];

/// The family of the first known name in `architectures`; of `model_type` when there is no such list.
///
/// # Errors
/// `Unsupported` with the list of what is known.
pub fn find(config: &ModelConfig) -> Result<&'static Family> {
    let known = |name: &String| FAMILIES.iter().find(|f| f.architecture == name.as_str());
    let by_type = || FAMILIES.iter().find(|f| f.model_type == config.model_type);
    let found = match config.architectures.as_slice() {
        [] => by_type(),
        names => names.iter().find_map(known),
    };
    found.ok_or_else(|| {
        let names: Vec<&str> = FAMILIES.iter().map(|f| f.architecture).collect();
        Error::Unsupported(format!(
            "config.json: architectures is {:?} (model_type {:?}); known architectures are {}",
            config.architectures,
            config.model_type,
            names.join(", ")
        ))
    })
}
