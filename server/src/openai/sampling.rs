//! Sampling fields of a request: read, checked against their ranges, merged with the model's defaults, and turned
//! into [`SamplingParams`].

use engine_core::config::generation::GenerationConfig;
use engine_core::limits::{MAX_BAD_WORDS, MAX_BIAS_IDS};
use engine_core::sampling::SamplingParams;
use serde_json::Value;

use super::codec::Codec;
use super::fields::Fields;
use crate::client::EngineInfo;
use crate::http::error::ApiError;
use crate::http::ids::Numbers;
use crate::http::limits::{MAX_SEQUENCES, MAX_STOP_STRINGS};
use crate::text::detokenize::DecodeOptions;

/// Below this, sampling is greedy.
const GREEDY_BELOW: f64 = 1e-5;
/// Smallest temperature that is used as given; less is raised to it.
const LEAST_TEMPERATURE: f64 = 0.01;
/// `max_tokens` of a completion that does not say.
const COMPLETION_MAX_TOKENS: i64 = 16;

/// What requests that leave a rule out get: the model authors' recommendation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SamplingDefaults {
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<i64>,
    pub min_p: Option<f64>,
    pub repetition_penalty: Option<f64>,
    /// Caps every answer (`max_new_tokens`).
    pub max_tokens: Option<u32>,
}

impl From<&GenerationConfig> for SamplingDefaults {
    fn from(file: &GenerationConfig) -> Self {
        SamplingDefaults {
            temperature: file.temperature.map(f64::from),
            top_p: file.top_p.map(f64::from),
            top_k: file.top_k.map(i64::from),
            min_p: file.min_p.map(f64::from),
            repetition_penalty: file.repetition_penalty.map(f64::from),
            max_tokens: file.max_new_tokens,
        }
    }
}

/// The two endpoints that sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Completions,
    Chat,
}

/// The fields as the client wrote them; only their types have been checked.
#[derive(Debug, Default)]
pub struct SamplingFields {
    n: Option<i64>,
    best_of: Option<i64>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<i64>,
    min_p: Option<f64>,
    presence_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
    repetition_penalty: Option<f64>,
    seed: Option<i64>,
    stop: Vec<String>,
    stop_token_ids: Vec<i64>,
    ignore_eos: bool,
    max_tokens: Option<i64>,
    max_tokens_name: &'static str,
    min_tokens: Option<i64>,
    logprobs: Option<i64>,
    /// As the body calls it.
    logprobs_name: &'static str,
    prompt_logprobs: Option<i64>,
    logit_bias: Vec<(String, Value)>,
    allowed_token_ids: Option<Vec<i64>>,
    bad_words: Vec<String>,
    include_stop_str_in_output: bool,
    skip_special_tokens: Option<bool>,
    spaces_between_special_tokens: Option<bool>,
}

/// Checked rules of one request.
#[derive(Debug, Clone)]
pub struct Sampling {
    /// Answers to return per prompt.
    pub n: u32,
    /// Answers to generate per prompt; the `n` likeliest per token are returned.
    pub best_of: u32,
    /// Strings that end an answer.
    pub stop: Vec<String>,
    pub include_stop_str_in_output: bool,
    /// How ids become text.
    pub decode: DecodeOptions,
    /// Engine rules; `max_tokens` and `seed` are set per prompt and answer.
    pub params: SamplingParams,
    seed: Option<u64>,
    max_tokens: MaxTokens,
}

/// How long an answer may get, before the prompt's length is known.
#[derive(Debug, Clone, Copy)]
struct MaxTokens {
    asked: Option<u32>,
    default_cap: Option<u32>,
    model_len: u32,
    name: &'static str,
}

impl SamplingFields {
    /// Takes the sampling fields out of a body.
    pub fn read(f: &mut Fields, endpoint: Endpoint) -> SamplingFields {
        refuse_what_is_not_there(f);
        let mut s = SamplingFields {
            n: f.int("n"),
            temperature: f.number("temperature"),
            top_p: f.number("top_p"),
            top_k: f.int("top_k"),
            min_p: f.number("min_p"),
            presence_penalty: f.number("presence_penalty"),
            frequency_penalty: f.number("frequency_penalty"),
            repetition_penalty: f.number("repetition_penalty"),
            seed: f.int("seed"),
            stop: f.text_or_texts("stop").unwrap_or_default(),
            stop_token_ids: f.ints("stop_token_ids").unwrap_or_default(),
            ignore_eos: f.flag("ignore_eos").unwrap_or(false),
            max_tokens_name: "max_tokens",
            min_tokens: f.int("min_tokens"),
            prompt_logprobs: f.int("prompt_logprobs"),
            logit_bias: f.object("logit_bias").unwrap_or_default().into_iter().collect(),
            allowed_token_ids: f.ints("allowed_token_ids"),
            bad_words: f.texts("bad_words").unwrap_or_default(),
            include_stop_str_in_output: f.flag("include_stop_str_in_output").unwrap_or(false),
            skip_special_tokens: f.flag("skip_special_tokens"),
            spaces_between_special_tokens: f.flag("spaces_between_special_tokens"),
            ..SamplingFields::default()
        };
        s.read_lengths(f, endpoint);
        if s.stop.len() > MAX_STOP_STRINGS {
            f.reject("stop", format!("at most {MAX_STOP_STRINGS} strings are allowed, got {}", s.stop.len()));
        }
        s
    }

    /// Log-probabilities per generated token that the client asked for.
    pub fn logprobs(&self) -> Option<i64> {
        self.logprobs
    }

    /// Whether prompt log-probabilities were asked for.
    pub fn wants_prompt_logprobs(&self) -> bool {
        self.prompt_logprobs.is_some()
    }

    /// Whether more answers are generated than returned.
    pub fn ranks_answers(&self) -> bool {
        self.best_of.is_some_and(|b| b != self.n.unwrap_or(1))
    }

    /// `max_tokens: 0`, which a completion with echo accepts: the prompt comes back and nothing is generated.
    pub fn nothing_to_generate(&self) -> bool {
        self.max_tokens == Some(0)
    }

    /// Completions with echo: nothing is returned of the one token that is generated.
    pub fn generate_one(&mut self) {
        self.max_tokens = Some(1);
        self.min_tokens = None;
    }

    /// Completions with echo and logprobs return those of the prompt too.
    pub fn logprobs_for_prompt(&mut self) {
        self.prompt_logprobs = self.prompt_logprobs.or(self.logprobs);
    }

    /// Checks every range and merges the defaults.
    ///
    /// # Errors
    /// 400 `BadRequestError` naming the first parameter out of range.
    pub fn resolve(
        &self,
        info: &EngineInfo,
        defaults: &SamplingDefaults,
        codec: &dyn Codec,
    ) -> Result<Sampling, ApiError> {
        let mut params = self.distribution(defaults)?;
        let (n, best_of) = self.counts(params.temperature == 0.0)?;
        params.logprobs = self.logprob_count(self.logprobs_name, self.logprobs, info)?;
        if best_of > n {
            params.logprobs = params.logprobs.or(Some(0));
        }
        params.prompt_logprobs = self.logprob_count("prompt_logprobs", self.prompt_logprobs, info)?;
        params.stop_token_ids = in_vocabulary("stop_token_ids", &self.stop_token_ids, info)?;
        params.stop_token_ids.sort_unstable();
        params.stop_token_ids.dedup();
        params.eos_token_ids.clone_from(&info.eos_token_ids);
        params.ignore_eos = self.ignore_eos;
        params.logit_bias = self.bias(info)?;
        params.allowed_token_ids = self.allowed(info)?;
        params.bad_words = self.bad_words(codec)?;
        if self.stop.iter().any(String::is_empty) {
            return Err(ApiError::invalid("stop cannot contain an empty string.").with_param("stop"));
        }
        let max_tokens = self.max_tokens(info, defaults)?;
        params.min_tokens = self.min_tokens(max_tokens.asked)?;
        Ok(Sampling {
            n,
            best_of,
            stop: self.stop.clone(),
            include_stop_str_in_output: self.include_stop_str_in_output,
            decode: DecodeOptions {
                skip_special_tokens: self.skip_special_tokens.unwrap_or(true),
                spaces_between_special_tokens: self.spaces_between_special_tokens.unwrap_or(true),
            },
            params,
            seed: self.seed.filter(|s| *s != -1).map(|s| s as u64),
            max_tokens,
        })
    }

    fn read_lengths(&mut self, f: &mut Fields, endpoint: Endpoint) {
        match endpoint {
            Endpoint::Completions => {
                self.best_of = f.int("best_of");
                self.logprobs_name = "logprobs";
                self.logprobs = f.int("logprobs");
                // Absent is 16; null is the rest of the context.
                let given = f.has("max_tokens");
                self.max_tokens = f.int("max_tokens").or((!given).then_some(COMPLETION_MAX_TOKENS));
            }
            Endpoint::Chat => {
                let old = f.int("max_tokens");
                let new = f.int("max_completion_tokens");
                self.max_tokens_name = if new.is_some() { "max_completion_tokens" } else { "max_tokens" };
                self.max_tokens = new.or(old);
                let wanted = f.flag("logprobs").unwrap_or(false);
                let top = f.int("top_logprobs");
                if top.is_some_and(|t| t != 0) && !wanted {
                    f.reject("top_logprobs", "needs `logprobs` to be true");
                }
                self.logprobs_name = "top_logprobs";
                self.logprobs = wanted.then(|| top.unwrap_or(0));
            }
        }
    }

    fn distribution(&self, defaults: &SamplingDefaults) -> Result<SamplingParams, ApiError> {
        let temperature = self.temperature.or(defaults.temperature).unwrap_or(1.0);
        within("temperature", temperature, (0.0..=2.0).contains(&temperature), "in [0, 2]")?;
        let top_p = self.top_p.or(defaults.top_p).unwrap_or(1.0);
        within("top_p", top_p, top_p > 0.0 && top_p <= 1.0, "in (0, 1]")?;
        let top_k = self.top_k.or(defaults.top_k).unwrap_or(0);
        if !(-1..=i64::from(u32::MAX)).contains(&top_k) {
            return Err(out_of_range("top_k", top_k, "0 or -1 (off), or at least 1"));
        }
        let min_p = self.min_p.or(defaults.min_p).unwrap_or(0.0);
        within("min_p", min_p, (0.0..=1.0).contains(&min_p), "in [0, 1]")?;
        let presence = self.presence_penalty.unwrap_or(0.0);
        within("presence_penalty", presence, (-2.0..=2.0).contains(&presence), "in [-2, 2]")?;
        let frequency = self.frequency_penalty.unwrap_or(0.0);
        within("frequency_penalty", frequency, (-2.0..=2.0).contains(&frequency), "in [-2, 2]")?;
        let repetition = self.repetition_penalty.or(defaults.repetition_penalty).unwrap_or(1.0);
        let usable = repetition > 0.0 && (repetition as f32).is_finite() && repetition as f32 > 0.0;
        within("repetition_penalty", repetition, usable, "finite and greater than 0")?;
        let mut params = SamplingParams {
            presence_penalty: presence as f32,
            frequency_penalty: frequency as f32,
            repetition_penalty: repetition as f32,
            temperature: 0.0,
            ..SamplingParams::default()
        };
        if temperature >= GREEDY_BELOW {
            params.temperature = temperature.max(LEAST_TEMPERATURE) as f32;
            params.top_p = (top_p as f32).max(f32::MIN_POSITIVE);
            params.top_k = top_k.max(0) as u32;
            params.min_p = min_p as f32;
        }
        Ok(params)
    }

    fn counts(&self, greedy: bool) -> Result<(u32, u32), ApiError> {
        let n = self.n.unwrap_or(1);
        let best_of = self.best_of.unwrap_or(n);
        for (name, count) in [("n", n), ("best_of", best_of)] {
            if count < 1 {
                return Err(ApiError::invalid(format!("{name} must be at least 1, got {count}.")));
            }
            if count > MAX_SEQUENCES as i64 {
                return Err(ApiError::invalid(format!(
                    "{name} must be at most {MAX_SEQUENCES}, got {count}."
                )));
            }
            if count > 1 && greedy {
                let message = format!("{name} must be 1 when using greedy sampling, got {count}.");
                return Err(ApiError::invalid(message));
            }
        }
        if best_of < n {
            let message = format!("best_of must be at least n, got n={n} and best_of={best_of}.");
            return Err(ApiError::invalid(message).with_param("best_of"));
        }
        Ok((n as u32, best_of as u32))
    }

    fn logprob_count(
        &self,
        name: &'static str,
        count: Option<i64>,
        info: &EngineInfo,
    ) -> Result<Option<u32>, ApiError> {
        let Some(count) = count else { return Ok(None) };
        if count < -1 {
            return Err(out_of_range(name, count, "at least 0, or -1 for the whole vocabulary"));
        }
        let wanted = if count == -1 { info.vocab_size } else { u32::try_from(count).unwrap_or(u32::MAX) };
        let most = info.max_logprobs.unwrap_or(info.vocab_size).min(info.vocab_size);
        if wanted > most {
            let message = format!("Requested {name} of {count}, which is greater than max allowed: {most}.");
            return Err(ApiError::invalid(message).with_param(name));
        }
        Ok(Some(wanted))
    }

    fn bias(&self, info: &EngineInfo) -> Result<Vec<(u32, f32)>, ApiError> {
        let wrong = |what: String| ApiError::invalid(what).with_param("logit_bias");
        if self.logit_bias.len() > MAX_BIAS_IDS {
            let count = self.logit_bias.len();
            return Err(wrong(format!(
                "logit_bias has {count} entries; at most {MAX_BIAS_IDS} are allowed."
            )));
        }
        let entry = |(key, value): &(String, Value)| {
            let id: i64 = key
                .parse()
                .map_err(|_| wrong(format!("logit_bias: key `{key}` is no token id (a whole number).")))?;
            let ids = in_vocabulary("logit_bias", &[id], info)?;
            let bias = value.as_f64().ok_or_else(|| {
                wrong(format!("logit_bias: the bias of token {id} must be a number, got {value}."))
            })?;
            Ok((ids[0], bias.clamp(-100.0, 100.0) as f32))
        };
        self.logit_bias.iter().map(entry).collect()
    }

    fn allowed(&self, info: &EngineInfo) -> Result<Option<Vec<u32>>, ApiError> {
        let Some(ids) = &self.allowed_token_ids else { return Ok(None) };
        if ids.is_empty() {
            let error = ApiError::invalid("allowed_token_ids cannot be an empty list.");
            return Err(error.with_param("allowed_token_ids"));
        }
        in_vocabulary("allowed_token_ids", ids, info).map(Some)
    }

    /// Each word as it is tokenized at the start and, with a space before it, inside a text.
    fn bad_words(&self, codec: &dyn Codec) -> Result<Vec<Vec<u32>>, ApiError> {
        let wrong = |what: String| ApiError::invalid(what).with_param("bad_words");
        let mut sequences: Vec<Vec<u32>> = Vec::new();
        for word in &self.bad_words {
            let bare = word.trim_start();
            if bare.is_empty() {
                return Err(wrong("bad_words cannot contain an empty string.".into()));
            }
            for text in [bare.to_string(), format!(" {bare}")] {
                let ids = codec.encode(&text, false).map_err(wrong)?;
                if !ids.is_empty() && !sequences.contains(&ids) {
                    sequences.push(ids);
                }
            }
            if sequences.len() > MAX_BAD_WORDS {
                return Err(wrong(format!("bad_words makes more than {MAX_BAD_WORDS} token sequences.")));
            }
        }
        Ok(sequences)
    }

    fn max_tokens(&self, info: &EngineInfo, defaults: &SamplingDefaults) -> Result<MaxTokens, ApiError> {
        let name = self.max_tokens_name;
        let model_len = info.max_model_len;
        if let Some(asked) = self.max_tokens {
            if asked < 1 {
                return Err(out_of_range(name, asked, "at least 1"));
            }
            if asked > i64::from(model_len) {
                let message = format!(
                    "{name} must be at most {model_len}, this model's maximum context length in tokens, got {asked}."
                );
                return Err(ApiError::invalid(message).with_param(name));
            }
        }
        let asked = self.max_tokens.map(|t| t as u32);
        Ok(MaxTokens { asked, default_cap: defaults.max_tokens, model_len, name })
    }

    fn min_tokens(&self, max_tokens: Option<u32>) -> Result<u32, ApiError> {
        let min = self.min_tokens.unwrap_or(0);
        if min < 0 || min > i64::from(u32::MAX) {
            return Err(out_of_range("min_tokens", min, "at least 0"));
        }
        if let Some(max) = max_tokens.filter(|m| min > i64::from(*m)) {
            return Err(out_of_range("min_tokens", min, &format!("at most max_tokens={max}")));
        }
        Ok(min as u32)
    }
}

impl Sampling {
    /// The rules of answer number `answer` to a prompt of this length. What does not fit into the context is
    /// clamped to the room that is left. A request without a seed takes one from `seeds`.
    ///
    /// # Errors
    /// 400 when the prompt leaves no room.
    pub fn for_prompt(
        &self,
        prompt_tokens: usize,
        answer: u32,
        seeds: &Numbers,
    ) -> Result<SamplingParams, ApiError> {
        let max_tokens = self.room(prompt_tokens)?;
        let seed = match self.seed {
            Some(seed) => seed.wrapping_add(u64::from(answer)),
            None => seeds.next(),
        };
        let min_tokens = self.params.min_tokens.min(max_tokens);
        Ok(SamplingParams { max_tokens, min_tokens, seed, ..self.params.clone() })
    }

    /// Tokens that an answer to a prompt of this length may have.
    ///
    /// # Errors
    /// 400 when the prompt leaves no room.
    pub fn room(&self, prompt_tokens: usize) -> Result<u32, ApiError> {
        let limits = &self.max_tokens;
        let length = limits.model_len as usize;
        if prompt_tokens > length {
            let message = format!(
                "This model's maximum context length is {length} tokens. However, your prompt contains \
                 {prompt_tokens} input tokens. Please reduce the length of the input prompt."
            );
            return Err(ApiError::invalid(message).with_param("input_tokens"));
        }
        let room = (length - prompt_tokens) as u32;
        if room == 0 {
            let message = format!(
                "{} must be at least 1, got 0: the prompt fills the model's context of {length} tokens.",
                limits.name
            );
            return Err(ApiError::invalid(message).with_param(limits.name));
        }
        let wanted = limits.asked.unwrap_or(u32::MAX);
        Ok(room.min(wanted).min(limits.default_cap.unwrap_or(u32::MAX)))
    }
}

fn refuse_what_is_not_there(f: &mut Fields) {
    const LATER: [&str; 6] = [
        "structured_outputs",
        "logprob_token_ids",
        "repetition_detection",
        "thinking_token_budget",
        "watermarking",
        "prompt_embeds",
    ];
    for name in LATER {
        if f.take(name).is_some_and(|v| v != Value::Bool(false)) {
            f.reject(name, "is not supported by this server");
        }
    }
    if f.flag("use_beam_search") == Some(true) {
        f.reject("use_beam_search", "beam search is not supported by this server");
    }
    let kind = f.nested("response_format", |r| r.text("type")).flatten();
    if kind.is_some_and(|k| k != "text") {
        f.reject("response_format", "only the type `text` is supported by this server");
    }
}

fn within(name: &'static str, value: f64, ok: bool, range: &str) -> Result<(), ApiError> {
    if ok { Ok(()) } else { Err(out_of_range(name, value, range)) }
}

fn out_of_range(name: &'static str, value: impl std::fmt::Display, range: &str) -> ApiError {
    ApiError::invalid(format!("{name} must be {range}, got {value}.")).with_param(name)
}

/// The ids as the engine counts them.
///
/// # Errors
/// 400 naming the first id outside the vocabulary.
pub fn in_vocabulary(name: &'static str, ids: &[i64], info: &EngineInfo) -> Result<Vec<u32>, ApiError> {
    ids.iter()
        .map(|id| match u32::try_from(*id) {
            Ok(fits) if fits < info.vocab_size => Ok(fits),
            _ => {
                let last = info.vocab_size.saturating_sub(1);
                let message = format!("{name}: token id {id} is out of vocabulary; ids are 0 to {last}.");
                Err(ApiError::invalid(message).with_param(name))
            }
        })
        .collect()
}
