//! From the `prompt` field (or a rendered conversation) to token ids.

use std::sync::Arc;

use serde_json::Value;

use super::codec::Codec;
use super::fields::Fields;
use super::sampling::in_vocabulary;
use crate::client::EngineInfo;
use crate::http::error::ApiError;
use crate::http::limits::{INLINE_TEXT_BYTES, MAX_PROMPTS};

/// One prompt as given.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    Text(String),
    Ids(Vec<i64>),
}

/// How a prompt becomes ids.
#[derive(Clone, Copy, Debug)]
pub struct Encoding {
    pub add_special_tokens: bool,
    pub truncation: Option<Truncation>,
}

/// `truncate_prompt_tokens` and `truncation_side`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncation {
    /// Tokens that stay; `None` is all that the context holds.
    tokens: Option<usize>,
    side: Side,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Left,
    Right,
}

impl Truncation {
    /// Takes the fields out of a body.
    pub fn read(f: &mut Fields) -> Option<Truncation> {
        let tokens = f.int("truncate_prompt_tokens");
        let side = match f.text("truncation_side").as_deref() {
            None | Some("left") => Side::Left,
            Some("right") => Side::Right,
            Some(other) => {
                f.reject("truncation_side", format!("must be `left` or `right`, got `{other}`"));
                Side::Left
            }
        };
        match tokens? {
            -1 => Some(Truncation { tokens: None, side }),
            count if count >= 1 => Some(Truncation { tokens: Some(count as usize), side }),
            count => {
                f.reject(
                    "truncate_prompt_tokens",
                    format!("must be -1 (the context) or at least 1, got {count}"),
                );
                None
            }
        }
    }

    /// # Errors
    /// 400 when more tokens should stay than the context holds.
    fn apply(self, ids: &mut Vec<u32>, max_model_len: u32) -> Result<(), ApiError> {
        let longest = max_model_len as usize;
        let keep = self.tokens.unwrap_or(longest.saturating_sub(1));
        if keep > longest {
            let message =
                format!("truncate_prompt_tokens must be at most {longest}, the context, got {keep}.");
            return Err(ApiError::invalid(message).with_param("truncate_prompt_tokens"));
        }
        match self.side {
            Side::Left => drop(ids.drain(..ids.len().saturating_sub(keep))),
            Side::Right => ids.truncate(keep),
        }
        Ok(())
    }
}

/// Reads `prompt`: a string, a list of strings, ids, or a list of lists of ids.
pub fn read_prompts(f: &mut Fields) -> Vec<Prompt> {
    if f.take("prompt_embeds").is_some() {
        f.reject("prompt_embeds", "is not supported by this server");
    }
    let Some(value) = f.take("prompt") else {
        f.reject("prompt", "field required");
        return Vec::new();
    };
    let prompts = match value {
        Value::String(text) => Some(vec![Prompt::Text(text)]),
        Value::Array(list) if list.first().is_some_and(Value::is_number) => ids(list).map(|p| vec![p]),
        Value::Array(list) => list.into_iter().map(one_of_many).collect(),
        _ => None,
    };
    let Some(prompts) = prompts else {
        f.reject(
            "prompt",
            "must be a string, a list of strings, a list of token ids, or a list of such lists",
        );
        return Vec::new();
    };
    if prompts.len() > MAX_PROMPTS {
        f.reject("prompt", format!("at most {MAX_PROMPTS} prompts are allowed, got {}", prompts.len()));
    }
    prompts
}

/// Refuses text that fits the context in no tokenization, before it is tokenized.
///
/// # Errors
/// 400 with the parameter `input_text`.
pub fn check_lengths(
    prompts: &[Prompt],
    encoding: Encoding,
    codec: &dyn Codec,
    info: &EngineInfo,
) -> Result<(), ApiError> {
    match encoding.truncation {
        Some(_) => Ok(()),
        None => prompts.iter().try_for_each(|prompt| check_length(prompt, codec, info)),
    }
}

/// Turns prompts into ids. Long text is tokenized on a blocking thread, so that it holds up no stream.
///
/// # Errors
/// 400 for an empty prompt or an id outside the vocabulary; 500 when the tokenizer fails.
pub async fn encode_all(
    prompts: Vec<Prompt>,
    encoding: Encoding,
    codec: &Arc<dyn Codec>,
    info: &EngineInfo,
) -> Result<Vec<Arc<[u32]>>, ApiError> {
    if prompts.is_empty() {
        return Err(empty());
    }
    let bytes: usize = prompts.iter().map(|p| if let Prompt::Text(t) = p { t.len() } else { 0 }).sum();
    if bytes <= INLINE_TEXT_BYTES {
        return prompts.into_iter().map(|p| encode(p, encoding, codec.as_ref(), info)).collect();
    }
    let (codec, info) = (codec.clone(), info.clone());
    let work = move || prompts.into_iter().map(|p| encode(p, encoding, codec.as_ref(), &info)).collect();
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err(ApiError::internal("The tokenizer failed.")))
}

fn encode(
    prompt: Prompt,
    encoding: Encoding,
    codec: &dyn Codec,
    info: &EngineInfo,
) -> Result<Arc<[u32]>, ApiError> {
    let mut ids = match prompt {
        Prompt::Text(text) if text.is_empty() => return Err(empty()),
        Prompt::Text(text) => codec.encode(&text, encoding.add_special_tokens).map_err(ApiError::internal)?,
        Prompt::Ids(ids) => in_vocabulary("prompt", &ids, info)?,
    };
    if let Some(truncation) = encoding.truncation {
        truncation.apply(&mut ids, info.max_model_len)?;
    }
    // A tokenizer that does not belong to the model would index past the embedding.
    if let Some(id) = ids.iter().find(|id| **id >= info.vocab_size) {
        let vocab = info.vocab_size;
        return Err(ApiError::internal(format!("the tokenizer made id {id}, the model has {vocab} tokens")));
    }
    if ids.is_empty() { Err(empty()) } else { Ok(ids.into()) }
}

fn check_length(prompt: &Prompt, codec: &dyn Codec, info: &EngineInfo) -> Result<(), ApiError> {
    let (Prompt::Text(text), Some(longest)) = (prompt, codec.longest_token_chars()) else { return Ok(()) };
    let most = longest.saturating_mul(info.max_model_len as usize);
    // No text has more characters than bytes.
    if text.len() <= most || text.chars().count() <= most {
        return Ok(());
    }
    let message = format!(
        "This model's maximum context length is {} tokens, which is at most {most} characters. However, your prompt \
         has {} characters. Please reduce the length of the input prompt.",
        info.max_model_len,
        text.chars().count()
    );
    Err(ApiError::invalid(message).with_param("input_text"))
}

fn empty() -> ApiError {
    ApiError::invalid("The decoder prompt cannot be empty.").with_param("prompt")
}

fn one_of_many(value: Value) -> Option<Prompt> {
    match value {
        Value::String(text) => Some(Prompt::Text(text)),
        Value::Array(list) => ids(list),
        _ => None,
    }
}

fn ids(list: Vec<Value>) -> Option<Prompt> {
    list.iter().map(Value::as_i64).collect::<Option<Vec<i64>>>().map(Prompt::Ids)
}
