//! `/v1/chat/completions`.

use serde::Serialize;

use super::{RequestMetrics, Usage};
use crate::openai::generation::StopReason;
use crate::openai::logprobs::{ChatLogprobs, PromptLogprobs};

/// A whole answer.
#[derive(Debug, Serialize)]
pub struct ChatCompletion<'a> {
    pub id: &'a str,
    pub object: &'static str,
    pub created: u64,
    pub model: &'a str,
    pub choices: Vec<ChatChoice>,
    pub service_tier: Option<&'static str>,
    pub system_fingerprint: Option<&'a str>,
    pub usage: Usage,
    pub prompt_logprobs: Option<PromptLogprobs>,
    pub prompt_token_ids: Option<Vec<u32>>,
    pub kv_transfer_params: Option<()>,
    pub metrics: Option<RequestMetrics>,
}

/// One answer.
#[derive(Debug, Serialize)]
pub struct ChatChoice {
    pub index: usize,
    pub message: ChatMessage,
    pub logprobs: Option<ChatLogprobs>,
    pub finish_reason: Option<&'static str>,
    pub stop_reason: Option<StopReason>,
    pub token_ids: Option<Vec<u32>>,
}

/// What the model said.
#[derive(Debug, Serialize)]
pub struct ChatMessage {
    pub role: String,
    pub content: String,
    pub refusal: Option<()>,
    pub annotations: Option<()>,
    pub audio: Option<()>,
    pub function_call: Option<()>,
    pub reasoning: Option<()>,
}
