//! `--speculative-config`: vLLM's JSON to what the engine drafts with.

use std::sync::Arc;

use engine_core::speculate::{DraftModel, Method, Speculation};
use serde_json::Value;

use crate::cli::{EngineArgs, JsonMap, LogFormat};
use crate::model::{OpenModel, StartError};

/// n-gram length when none is given, as vLLM has it.
const LOOKUP: u32 = 5;
/// Methods of vLLM that are not here.
const OTHERS: &[&str] = &[
    "ngram_gpu",
    "suffix",
    "eagle",
    "eagle3",
    "medusa",
    "mlp_speculator",
    "mtp",
    "dflash",
    "dspark",
    "extract_hidden_states",
    "custom_class",
];

/// What the flags ask for; a draft model is found and its configuration read.
///
/// # Errors
/// A key or value that is not understood, by name; a draft model that cannot be read.
pub fn speculation(args: &EngineArgs, log: LogFormat) -> Result<Option<Speculation>, StartError> {
    let Some(map) = &args.speculative_config else { return Ok(None) };
    let mut keys = Keys { map: map.clone() };
    let method = keys.text("method")?;
    let model = keys.text("model")?;
    let given = keys.number("num_speculative_tokens")?;
    let tokens = given.ok_or_else(|| {
        wrong("num_speculative_tokens is missing; give how many tokens to draft, such as 4".to_owned())
    })?;
    let most_rows = keys.number("disable_by_batch_size")?;
    let (revision, quantization) = (keys.text("revision")?, keys.text("quantization")?);
    let max_len = keys.number("max_model_len")?;
    let lookup = (keys.number("prompt_lookup_min")?, keys.number("prompt_lookup_max")?);
    keys.check_rest()?;
    let ngram = matches!(method.as_deref(), Some("ngram" | "[ngram]")) || model.as_deref() == Some("[ngram]");
    let method = match (method.as_deref(), model) {
        _ if ngram => {
            // One alone stands for both.
            let max = lookup.1.or(lookup.0).unwrap_or(LOOKUP);
            Method::Ngram { min: lookup.0.unwrap_or(max), max }
        }
        (None | Some("draft_model"), Some(model)) => {
            Method::Model(Box::new(draft_model(args, model, revision, quantization, max_len, log)?))
        }
        (None | Some("draft_model"), None) => {
            return Err(wrong("model is missing; name the draft model, or give method ngram".to_owned()));
        }
        (Some(other), _) => {
            let known = if OTHERS.contains(&other) { "is not in this version" } else { "is not known" };
            return Err(wrong(format!("method {other} {known}; give ngram or draft_model")));
        }
    };
    let speculation = Speculation { tokens, most_rows, method };
    speculation.check()?;
    Ok(Some(speculation))
}

fn draft_model(
    args: &EngineArgs,
    name: String,
    revision: Option<String>,
    quantization: Option<String>,
    max_len: Option<u32>,
    log: LogFormat,
) -> Result<DraftModel, StartError> {
    let own = EngineArgs {
        model: Some(name.clone()),
        revision,
        quantization,
        hf_config_path: None,
        hf_overrides: JsonMap::new(),
        speculative_config: None,
        ..args.clone()
    };
    let model = OpenModel::open_draft(&own, log)?;
    let source = Arc::from(model.weights(&own)?);
    Ok(DraftModel { name, config: model.config, source, max_len })
}

/// The object's keys, each taken once.
struct Keys {
    map: JsonMap,
}

impl Keys {
    fn text(&mut self, key: &str) -> Result<Option<String>, StartError> {
        match self.map.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(format!("{key} is {other}; it must be text"))),
        }
    }

    fn number(&mut self, key: &str) -> Result<Option<u32>, StartError> {
        let value = match self.map.remove(key) {
            None | Some(Value::Null) => return Ok(None),
            Some(value) => value,
        };
        let number = value.as_u64().and_then(|n| u32::try_from(n).ok());
        number
            .map(Some)
            .ok_or_else(|| wrong(format!("{key} is {value}; it must be a whole number from 0 on")))
    }

    /// Keys of vLLM that hold what is done anyway are fine; anything else is not understood.
    fn check_rest(&self) -> Result<(), StartError> {
        for (key, value) in &self.map {
            let only: &[Value] = match key.as_str() {
                "draft_tensor_parallel_size" => &[Value::from(1)],
                "rejection_sample_method" => &[Value::from("standard")],
                "parallel_drafting" | "enforce_eager" | "disable_padded_drafter_batch" => {
                    &[Value::Bool(false)]
                }
                "disable_logprobs" => &[Value::Bool(false)],
                _ => &[],
            };
            if value.is_null() && !only.is_empty() || only.contains(value) {
                continue;
            }
            return Err(wrong(match only.first() {
                Some(only) => format!("{key} is {value}; only {only} is in this version"),
                None => format!(
                    "{key} is not known; known are method, model, num_speculative_tokens, prompt_lookup_min, \
                     prompt_lookup_max, disable_by_batch_size, max_model_len, revision and quantization"
                ),
            }));
        }
        Ok(())
    }
}

fn wrong(what: String) -> StartError {
    StartError::new(format!("--speculative-config: {what}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(json: &str) -> Result<Option<Speculation>, StartError> {
        let map = serde_json::from_str(json).unwrap();
        let args = EngineArgs { speculative_config: Some(map), ..EngineArgs::default() };
        speculation(&args, LogFormat::Text)
    }

    fn lookup(json: &str) -> (u32, u32, u32) {
        let s = parse(json).unwrap().unwrap();
        let Method::Ngram { min, max } = s.method else { panic!("{json} is no lookup") };
        (s.tokens, min, max)
    }

    #[test]
    fn a_lookup_has_vllms_defaults() {
        assert_eq!(lookup(r#"{"method":"ngram","num_speculative_tokens":4}"#), (4, 5, 5));
        assert_eq!(
            lookup(r#"{"model":"[ngram]","num_speculative_tokens":4,"prompt_lookup_max":3}"#),
            (4, 3, 3)
        );
        assert_eq!(
            lookup(r#"{"method":"ngram","num_speculative_tokens":1,"prompt_lookup_min":2}"#),
            (1, 2, 2)
        );
        let both =
            r#"{"method":"ngram","num_speculative_tokens":8,"prompt_lookup_min":2,"prompt_lookup_max":4}"#;
        assert_eq!(lookup(both), (8, 2, 4));
        let neutral =
            r#"{"method":"ngram","num_speculative_tokens":8,"draft_tensor_parallel_size":1,"revision":null}"#;
        assert_eq!(lookup(neutral), (8, 5, 5));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (json, text) in [
            (r#"{"method":"ngram"}"#, "num_speculative_tokens is missing"),
            (r#"{"method":"ngram","num_speculative_tokens":"x"}"#, "num_speculative_tokens is \"x\""),
            (
                r#"{"method":"ngram","num_speculative_tokens":17}"#,
                "num_speculative_tokens is 17; it must be between",
            ),
            (
                r#"{"method":"ngram","num_speculative_tokens":4,"prompt_lookup_min":6,"prompt_lookup_max":4}"#,
                "prompt_lookup_min is 6",
            ),
            (
                r#"{"method":"ngram","num_speculative_tokens":4,"prompt_lookup_max":0}"#,
                "prompt_lookup_max is 0",
            ),
            (r#"{"method":"eagle3","num_speculative_tokens":4}"#, "method eagle3 is not in this version"),
            (r#"{"method":"egale","num_speculative_tokens":4}"#, "method egale is not known"),
            (r#"{"num_speculative_tokens":4}"#, "model is missing"),
            (
                r#"{"method":"ngram","num_speculative_tokens":4,"draft_tensor_parallel_size":2}"#,
                "draft_tensor_parallel_size is 2; only 1",
            ),
            (r#"{"method":"ngram","num_speculative_tokens":4,"lookup":2}"#, "lookup is not known"),
        ] {
            let message = parse(json).unwrap_err().to_string();
            assert!(
                message.starts_with("--speculative-config: ") && message.contains(text),
                "{json}: {message}"
            );
        }
    }
}
