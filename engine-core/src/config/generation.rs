//! `generation_config.json`: the sampling defaults a model's authors recommend.

use std::path::Path;

use serde_json::{Map, Value};

use super::fields::{Fields, read_json};
use crate::Result;

/// Defaults for requests that say nothing. `None` means the file says nothing either.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<u32>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub max_new_tokens: Option<u32>,
    /// `false` asks for greedy decoding in Hugging Face's generate; vLLM's defaults do not read it.
    pub do_sample: Option<bool>,
    pub bos_token_id: Option<u32>,
    pub pad_token_id: Option<u32>,
    /// Added to the end-of-sequence ids of config.json.
    pub eos_token_ids: Vec<u32>,
}

impl GenerationConfig {
    /// Reads `dir/generation_config.json`; without that file, everything is unset.
    ///
    /// # Errors
    /// [`crate::Error::Config`] naming the key when a value is no such thing.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("generation_config.json");
        if !path.exists() {
            return Ok(GenerationConfig::default());
        }
        Self::from_json(&read_json(&path)?)
    }

    /// The same from an object in hand.
    ///
    /// # Errors
    /// As [`GenerationConfig::from_dir`].
    pub fn from_json(map: &Map<String, Value>) -> Result<Self> {
        let f = Fields::new("generation_config.json", map);
        let unit = |key: &str| -> Result<Option<f32>> {
            match f.f64(key)? {
                Some(x) if !(0.0..=1.0).contains(&x) => Err(f.wrong(key, "a number from 0 to 1")),
                other => Ok(other.map(|x| x as f32)),
            }
        };
        let temperature = f.f64("temperature")?;
        if temperature.is_some_and(|t| t < 0.0) {
            return Err(f.wrong("temperature", "a number of at least 0"));
        }
        Ok(GenerationConfig {
            temperature: temperature.map(|x| x as f32),
            top_p: unit("top_p")?,
            top_k: top_k(&f)?,
            min_p: unit("min_p")?,
            repetition_penalty: f.positive("repetition_penalty")?.map(|x| x as f32),
            max_new_tokens: f.u32("max_new_tokens", 1)?,
            do_sample: f.bool("do_sample")?,
            bos_token_id: f.token_id("bos_token_id")?,
            pad_token_id: f.token_id("pad_token_id")?,
            eos_token_ids: f.token_ids("eos_token_id")?,
        })
    }
}

/// vLLM's own files spell "off" as -1, others as 0.
fn top_k(f: &Fields<'_>) -> Result<Option<u32>> {
    match f.get("top_k").and_then(Value::as_i64) {
        Some(-1) => Ok(Some(0)),
        _ => f.u32("top_k", 0),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::loader::testing::TempDir;

    fn parse(text: &str) -> Result<GenerationConfig> {
        let dir = TempDir::new("generation");
        dir.write("generation_config.json", text.as_bytes());
        GenerationConfig::from_dir(dir.path())
    }

    #[test]
    fn values_are_read_and_absence_is_kept() {
        let dir = TempDir::new("generation-none");
        assert_eq!(GenerationConfig::from_dir(dir.path()).unwrap(), GenerationConfig::default());
        let g = parse(
            r#"{"temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0, "repetition_penalty": 1.05,
                "eos_token_id": [128001, 128009, 128001], "bos_token_id": 128000, "do_sample": true,
                "max_new_tokens": 2048, "pad_token_id": null, "transformers_version": "4.45.0"}"#,
        )
        .unwrap();
        assert_eq!(g.eos_token_ids, [128001, 128009]);
        assert_eq!((g.temperature, g.top_p, g.top_k, g.min_p), (Some(0.6), Some(0.9), Some(20), Some(0.0)));
        assert_eq!((g.max_new_tokens, g.bos_token_id, g.pad_token_id), (Some(2048), Some(128000), None));
        assert_eq!(parse(r#"{"top_k": -1}"#).unwrap().top_k, Some(0));
        assert_eq!(parse(r#"{"eos_token_id": 2}"#).unwrap().eos_token_ids, [2]);
    }

    #[test]
    fn nonsense_is_named() {
        let cases = [
            (r#"{"temperature": -1}"#, "temperature is -1; a number of at least 0"),
            (r#"{"top_p": 1.5}"#, "top_p is 1.5; a number from 0 to 1"),
            (r#"{"top_k": "many"}"#, "top_k is \"many\"; a whole number"),
            (r#"{"eos_token_id": [1, "x"]}"#, "eos_token_id is [1,\"x\"]; a token id or a list"),
            (r#"{"eos_token_id": -1}"#, "eos_token_id is -1; a token id"),
            (r#"{"min_p": NaN}"#, "NaN and Infinity are no JSON numbers"),
            (r#"[1]"#, "is [1]; a JSON object is wanted"),
        ];
        for (text, part) in cases {
            let message = parse(text).unwrap_err().to_string();
            assert!(
                message.contains("generation_config.json") && message.contains(part),
                "{text}: {message}"
            );
        }
    }
}
