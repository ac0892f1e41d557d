//! Bodies of whole answers. Unset fields are written as `null`, as clients of vLLM see them.

pub mod chat;
pub mod completion;

use serde::Serialize;

use crate::fanout::Timing;

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

/// Timings of one sequence (`--enable-per-request-metrics`).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RequestMetrics {
    /// From being scheduled to the first token.
    pub time_to_first_token_ms: f64,
    /// From the first token to the last.
    pub generation_time_ms: f64,
    pub queue_time_ms: f64,
    /// Mean time between tokens; of a single token there is none.
    pub mean_itl_ms: Option<f64>,
    /// All tokens over the time from being scheduled to the last token.
    pub tokens_per_second: Option<f64>,
}

impl RequestMetrics {
    /// Of a sequence that generated this many tokens.
    pub fn new(timing: Timing, tokens: u64) -> RequestMetrics {
        let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
        let generation_time_ms = ms(timing.decode);
        let running_s = (timing.prefill + timing.decode).as_secs_f64();
        RequestMetrics {
            time_to_first_token_ms: ms(timing.prefill),
            generation_time_ms,
            queue_time_ms: ms(timing.queue),
            mean_itl_ms: (tokens > 1).then(|| generation_time_ms / (tokens - 1) as f64),
            tokens_per_second: (running_s > 0.0).then(|| tokens as f64 / running_s),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn timings_are_those_of_one_sequence() {
        let ms = Duration::from_millis;
        let timing = Timing { queue: ms(500), prefill: ms(500), decode: ms(1000) };
        let ten = RequestMetrics::new(timing, 10);
        assert_eq!((ten.queue_time_ms, ten.time_to_first_token_ms), (500.0, 500.0));
        assert_eq!((ten.generation_time_ms, ten.mean_itl_ms), (1000.0, Some(1000.0 / 9.0)));
        assert_eq!(ten.tokens_per_second, Some(10.0 / 1.5));
        assert_eq!(RequestMetrics::new(timing, 1).mean_itl_ms, None);
    }
}
