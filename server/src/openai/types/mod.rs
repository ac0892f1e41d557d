//! Bodies of whole answers. Unset fields are written as `null`, as clients of vLLM see them.

pub mod chat;
pub mod completion;

use serde::Serialize;

/// Token counts of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    pub prompt_tokens: u64,
    pub total_tokens: u64,
    pub completion_tokens: u64,
    pub prompt_tokens_details: Option<PromptTokensDetails>,
}

/// Where prompt tokens came from (`--enable-prompt-tokens-details`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PromptTokensDetails {
    pub cached_tokens: u64,
}

impl Usage {
    /// Usage of so many prompt and generated tokens.
    pub fn new(prompt_tokens: u64, completion_tokens: u64, details: Option<PromptTokensDetails>) -> Usage {
        let total_tokens = prompt_tokens + completion_tokens;
        Usage { prompt_tokens, total_tokens, completion_tokens, prompt_tokens_details: details }
    }
}
