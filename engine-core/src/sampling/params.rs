//! [`SamplingParams`]: one request's sampling rules, already validated, in engine units (token ids, no text).

/// How one request is sampled. Text-level rules (stop strings, `n`, `best_of`, `echo`) belong to the server.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy. Otherwise in `[0.01, 2]`.
    pub temperature: f32,
    /// Nucleus mass, `(0, 1]`; 1 is off.
    pub top_p: f32,
    /// Candidates kept; 0 is off.
    pub top_k: u32,
    /// Least probability relative to the most likely token, `[0, 1]`; 0 is off.
    pub min_p: f32,
    /// Subtracted once from the logit of each generated token, `[-2, 2]`.
    pub presence_penalty: f32,
    /// Subtracted per occurrence from the logit of each generated token, `[-2, 2]`.
    pub frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens of prompt and output; > 0, 1 is off.
    pub repetition_penalty: f32,
    /// Key of the draw. The draw depends on (seed, position) alone; unseeded requests get one at admission.
    pub seed: u64,
    /// Most tokens to generate; at least 1.
    pub max_tokens: u32,
    /// Stop ids and end-of-sequence ids are masked until this many tokens are out.
    pub min_tokens: u32,
    /// Ids that end the request and are reported as `stop_reason`.
    pub stop_token_ids: Vec<u32>,
    /// The model's end-of-sequence ids; end the request without a `stop_reason`.
    pub eos_token_ids: Vec<u32>,
    /// Do not stop at `eos_token_ids`.
    pub ignore_eos: bool,
    /// Log-probabilities to return per generated token: the sampled one and this many best.
    pub logprobs: Option<u32>,
    /// Log-probabilities to return per prompt token. Such a request reads no prefix cache.
    pub prompt_logprobs: Option<u32>,
    /// Added to logits, `(id, bias)`, each in `[-100, 100]`.
    pub logit_bias: Vec<(u32, f32)>,
    /// When given, every other id is masked.
    pub allowed_token_ids: Option<Vec<u32>>,
    /// Token sequences that may not be completed.
    pub bad_words: Vec<Vec<u32>>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
            max_tokens: 16,
            min_tokens: 0,
            stop_token_ids: Vec::new(),
            eos_token_ids: Vec::new(),
            ignore_eos: false,
            logprobs: None,
            prompt_logprobs: None,
            logit_bias: Vec::new(),
            allowed_token_ids: None,
            bad_words: Vec::new(),
        }
    }
}

impl SamplingParams {
    /// Whether any rule needs to know which tokens came before (device-side counts).
    pub fn needs_history(&self) -> bool {
        self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
            || self.repetition_penalty != 1.0
            || !self.bad_words.is_empty()
    }
}
