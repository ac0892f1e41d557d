//! The scheduler's settings and their check.

use super::policy::SchedulingPolicy;
use crate::limits::{
    MAX_MODEL_LEN, MAX_NUM_BATCHED_TOKENS, MAX_NUM_SEQS, MAX_QUEUED_REQUESTS, MAX_STEPS_IN_FLIGHT,
};
use crate::{Error, Result};

/// Waiting costs a step what the host does between two, some hundredths of it; a row left out loses a step of its own.
const HOST_WAIT_SHARE: usize = 16;

/// `--enable-chunked-prefill`, and `--long-prefill-token-threshold`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkedPrefill {
    /// A prompt may be computed over several steps, at most `long_prefill_token_threshold` tokens in each.
    On { long_prefill_token_threshold: Option<u32> },
    /// A prompt is computed in one step. (Tokens that a preempted request had generated may still be recomputed over
    /// several.)
    Off,
}

/// The scheduler's settings, named after their flags.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    /// Row slots: most requests running at once.
    pub max_num_seqs: u32,
    /// Most tokens of one step; at least `max_num_seqs`, so that no running row is ever left out.
    pub max_num_batched_tokens: u32,
    /// Longest sequence, prompt and output together.
    pub max_model_len: u32,
    pub chunked_prefill: ChunkedPrefill,
    pub policy: SchedulingPolicy,
    /// Most requests that wait.
    pub max_queued_requests: usize,
    /// Most prompt tokens that wait; `None` leaves the bound to `max_queued_requests`.
    pub max_queued_tokens: Option<usize>,
    /// Steps planned and not committed at most; at least 1. One device needs [`MAX_STEPS_IN_FLIGHT`].
    pub max_steps_in_flight: usize,
    /// No step is planned while at least one running row in so many waits for the host; 0: never mind them.
    pub host_wait_share: usize,
}

impl SchedulerConfig {
    /// First come first served, chunked prefill, the widest queue.
    pub fn new(max_num_seqs: u32, max_num_batched_tokens: u32, max_model_len: u32) -> Self {
        SchedulerConfig {
            max_num_seqs,
            max_num_batched_tokens,
            max_model_len,
            chunked_prefill: ChunkedPrefill::On { long_prefill_token_threshold: None },
            policy: SchedulingPolicy::Fcfs,
            max_queued_requests: MAX_QUEUED_REQUESTS,
            max_queued_tokens: None,
            max_steps_in_flight: MAX_STEPS_IN_FLIGHT,
            host_wait_share: HOST_WAIT_SHARE,
        }
    }

    /// Whether the settings fit each other and the limits.
    ///
    /// # Errors
    /// [`Error::Config`] naming the flag, its value and what would be right.
    pub fn check(&self) -> Result<()> {
        in_range("--max-num-seqs", self.max_num_seqs, 1, MAX_NUM_SEQS)?;
        in_range("--max-num-batched-tokens", self.max_num_batched_tokens, 1, MAX_NUM_BATCHED_TOKENS)?;
        in_range("--max-model-len", self.max_model_len, 2, MAX_MODEL_LEN)?;
        in_range("the number of steps in flight", self.max_steps_in_flight as u32, 1, 64)?;
        let (budget, rows, length) = (self.max_num_batched_tokens, self.max_num_seqs, self.max_model_len);
        if budget < rows {
            return Err(Error::Config(format!(
                "--max-num-batched-tokens is {budget}, less than --max-num-seqs {rows}: every running request needs a \
                 token in each step; raise the first or lower the second"
            )));
        }
        match self.chunked_prefill {
            ChunkedPrefill::Off if budget < length => Err(Error::Config(format!(
                "--max-num-batched-tokens is {budget}, less than --max-model-len {length}: with \
                 --no-enable-chunked-prefill a whole prompt must fit into one step; raise the first, lower the second \
                 or enable chunked prefill"
            ))),
            ChunkedPrefill::On { long_prefill_token_threshold: Some(0) } => Err(Error::Config(
                "--long-prefill-token-threshold is 0 tokens a step; give at least 1, or leave it out"
                    .to_owned(),
            )),
            _ => Ok(()),
        }
    }
}

fn in_range(flag: &str, value: u32, least: u32, most: u32) -> Result<()> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::Config(format!("{flag} is {value}; it must be between {least} and {most}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_work_are_named() {
        let base = SchedulerConfig::new(8, 64, 128);
        assert!(base.check().is_ok());
        let capped = |cap| ChunkedPrefill::On { long_prefill_token_threshold: Some(cap) };
        let cases = [
            (SchedulerConfig { max_num_seqs: 0, ..base.clone() }, "--max-num-seqs is 0"),
            (SchedulerConfig { max_num_batched_tokens: 7, ..base.clone() }, "less than --max-num-seqs 8"),
            (SchedulerConfig { max_model_len: 1, ..base.clone() }, "--max-model-len is 1"),
            (
                SchedulerConfig { chunked_prefill: ChunkedPrefill::Off, ..base.clone() },
                "less than --max-model-len 128",
            ),
            (
                SchedulerConfig { chunked_prefill: capped(0), ..base.clone() },
                "--long-prefill-token-threshold is 0",
            ),
        ];
        for (config, text) in cases {
            let message = config.check().err().map(|e| e.to_string()).unwrap_or_default();
            assert!(message.contains(text), "{message:?} does not say {text:?}");
        }
    }
}
