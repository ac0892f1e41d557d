//! Every bound of the engine by name. A buffer, queue or loop that has no bound here is a bug.

/// Most rows (running sequences) one engine may be configured with.
pub const MAX_NUM_SEQS: u32 = 4_096;
/// Most tokens one step may be configured with.
pub const MAX_NUM_BATCHED_TOKENS: u32 = 262_144;
/// Longest context a configuration may ask for.
pub const MAX_MODEL_LEN: u32 = 16_777_216;
/// Most KV groups (full, window, latent, state) of one model.
pub const MAX_KV_GROUPS: usize = 8;
/// Steps that may be in flight on the device at once.
pub const MAX_STEPS_IN_FLIGHT: usize = 2;
/// Most captured graphs kept alive by one runner.
pub const MAX_GRAPHS: usize = 512;
/// Logit rows a step may ask for at once (prompt_logprobs runs the head in chunks of this).
pub const LOGIT_ROWS_CHUNK: u32 = 256;
/// Most multi-token bad-word sequences of one request.
pub const MAX_BAD_WORDS: usize = 128;
/// Most ids in one request's logit_bias or allowed_token_ids after expansion (the vocabulary bounds it too).
pub const MAX_BIAS_IDS: usize = 300_000;
/// Requests waiting in the engine's inbox before it refuses, unless configured lower.
pub const MAX_QUEUED_REQUESTS: usize = 65_536;
/// Largest safetensors header, in bytes.
pub const MAX_SAFETENSORS_HEADER_BYTES: u64 = 100_000_000;
/// Largest JSON configuration file, in bytes.
pub const MAX_CONFIG_BYTES: u64 = 16 << 20;
