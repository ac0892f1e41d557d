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
/// Most draft tokens verified for one row in one step.
pub const MAX_SPECULATIVE_TOKENS: usize = 16;
/// Most captured graphs kept alive by one runner.
pub const MAX_GRAPHS: usize = 512;
/// Logit rows a step may ask for at once (prompt_logprobs runs the head in chunks of this).
pub const LOGIT_ROWS_CHUNK: u32 = 256;
/// Most multi-token bad-word sequences of one request.
pub const MAX_BAD_WORDS: usize = 128;
/// Most tokens of all of one request's bad words together, their lengths included.
pub const MAX_BAD_WORD_TOKENS: u32 = 16_384;
/// Words of sampler records that travel in the packed upload; longer ones go ahead of the step.
pub const PACKED_RECORD_WORDS: usize = 4_096;
/// Most ids in one request's logit_bias or allowed_token_ids after expansion (the vocabulary bounds it too).
pub const MAX_BIAS_IDS: usize = 300_000;
/// Requests waiting in the engine's inbox before it refuses, unless configured lower.
pub const MAX_QUEUED_REQUESTS: usize = 65_536;
/// Largest safetensors header, in bytes.
pub const MAX_SAFETENSORS_HEADER_BYTES: u64 = 100_000_000;
/// Largest JSON configuration file, in bytes.
pub const MAX_CONFIG_BYTES: u64 = 16 << 20;
/// Most dimensions of a tensor in a checkpoint.
pub const MAX_TENSOR_RANK: usize = 8;
/// Largest pickle inside a torch checkpoint (tensor bytes lie outside of it).
pub const MAX_PICKLE_BYTES: u64 = 32 << 20;
/// Most values a torch checkpoint's pickle may push (about 25 a tensor).
pub const MAX_PICKLE_OBJECTS: usize = 4_000_000;
/// Most entries of a torch checkpoint's zip directory.
pub const MAX_ZIP_ENTRIES: u64 = 1_000_000;
/// Most weight files of one checkpoint.
pub const MAX_CHECKPOINT_FILES: usize = 4_096;
/// Most layers a configuration may ask for.
pub const MAX_LAYERS: u32 = 4_096;
/// Largest hidden, intermediate or vocabulary size a configuration may ask for.
pub const MAX_MODEL_WIDTH: u32 = 1 << 24;
