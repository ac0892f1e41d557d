//! `/v1/completions`.

use serde::Serialize;

use super::{RequestMetrics, Usage};
use crate::openai::generation::StopReason;
use crate::openai::logprobs::{CompletionLogprobs, PromptLogprobs};

/// A whole answer.
#[derive(Debug, Serialize)]
pub struct Completion<'a> {
    pub id: &'a str,
    pub object: &'static str,
    pub created: u64,
    pub model: &'a str,
    pub choices: Vec<CompletionChoice>,
    pub service_tier: Option<&'static str>,
    pub system_fingerprint: Option<&'a str>,
    pub usage: Usage,
    pub kv_transfer_params: Option<()>,
    pub metrics: Option<RequestMetrics>,
}

/// One completion.
#[derive(Debug, Serialize)]
pub struct CompletionChoice {
    pub index: usize,
    pub text: String,
    pub logprobs: Option<CompletionLogprobs>,
    pub finish_reason: Option<&'static str>,
    pub stop_reason: Option<StopReason>,
    pub token_ids: Option<Vec<u32>>,
    pub prompt_logprobs: Option<PromptLogprobs>,
    pub prompt_token_ids: Option<Vec<u32>>,
}
