//! What `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json` say about a tokenizer.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value as Json;

use super::TokenizerError;

/// Largest tokenizer file that is read, in bytes.
pub(super) const MAX_TOKENIZER_FILE_BYTES: u64 = 512 << 20;

/// A token that stands outside the model's own vocabulary rules: it is found in text as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AddedToken {
    pub content: String,
    /// Takes white space before it along.
    pub lstrip: bool,
    /// Takes white space after it along.
    pub rstrip: bool,
    /// Only counts when no letter or digit touches it.
    pub single_word: bool,
    /// Left out of decoded text by `skip_special_tokens`.
    pub special: bool,
}

/// The settings, with every file's part merged; `tokenizer_config.json` wins.
#[derive(Debug, Clone, Default)]
pub(super) struct Settings {
    pub class: String,
    pub add_bos: Option<bool>,
    pub add_eos: Option<bool>,
    pub add_prefix_space: Option<bool>,
    pub legacy: Option<bool>,
    pub bos: Option<String>,
    pub eos: Option<String>,
    pub unk: Option<String>,
    pub pad: Option<String>,
    /// Every special token by its text.
    pub special: Vec<String>,
    /// Tokens with the ids they must have.
    pub added: BTreeMap<u32, AddedToken>,
}

impl Settings {
    pub fn read(directory: &Path) -> Result<Self, TokenizerError> {
        let mut settings = Self::default();
        for file in ["special_tokens_map.json", "tokenizer_config.json"] {
            if let Some(json) = read_json(&directory.join(file))? {
                settings.merge(&json);
            }
        }
        if let Some(json) = read_json(&directory.join("added_tokens.json"))? {
            for (content, id) in json.as_object().into_iter().flatten() {
                let Some(id) = id.as_u64().and_then(|id| u32::try_from(id).ok()) else { continue };
                let special = settings.special.contains(content);
                settings.added.entry(id).or_insert_with(|| AddedToken::plain(content, special));
            }
        }
        Ok(settings)
    }

    fn merge(&mut self, json: &Json) {
        let flag = |name: &str| json.get(name).and_then(Json::as_bool);
        let text = |name: &str| json.get(name).and_then(token_text);
        self.class = json.get("tokenizer_class").and_then(Json::as_str).unwrap_or(&self.class).to_owned();
        self.add_bos = flag("add_bos_token").or(self.add_bos);
        self.add_eos = flag("add_eos_token").or(self.add_eos);
        self.add_prefix_space = flag("add_prefix_space").or(self.add_prefix_space);
        self.legacy = flag("legacy").or(self.legacy);
        self.bos = text("bos_token").or(self.bos.take());
        self.eos = text("eos_token").or(self.eos.take());
        self.unk = text("unk_token").or(self.unk.take());
        self.pad = text("pad_token").or(self.pad.take());
        let named =
            ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"];
        self.special.extend(named.iter().filter_map(|name| text(name)));
        for list in ["additional_special_tokens", "extra_special_tokens"] {
            let entries = json.get(list);
            let items = entries.and_then(Json::as_array).into_iter().flatten();
            let values = entries.and_then(Json::as_object).into_iter().flat_map(|map| map.values());
            self.special.extend(items.chain(values).filter_map(token_text));
        }
        for (id, token) in json.get("added_tokens_decoder").and_then(Json::as_object).into_iter().flatten() {
            if let (Ok(id), Some(token)) = (id.parse(), AddedToken::parse(token)) {
                self.added.insert(id, token);
            }
        }
    }
}

impl AddedToken {
    pub fn plain(content: &str, special: bool) -> Self {
        Self { content: content.to_owned(), lstrip: false, rstrip: false, single_word: false, special }
    }

    fn parse(json: &Json) -> Option<Self> {
        let flag = |name: &str| json.get(name).and_then(Json::as_bool).unwrap_or(false);
        Some(Self {
            content: token_text(json)?,
            lstrip: flag("lstrip"),
            rstrip: flag("rstrip"),
            single_word: flag("single_word"),
            special: flag("special"),
        })
    }
}

/// The bytes of `path`; `None` when there is no such file.
pub(super) fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, TokenizerError> {
    let refused = |reason: String| TokenizerError::File { path: path.display().to_string(), reason };
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(refused(error.to_string())),
        Ok(found) if found.len() > MAX_TOKENIZER_FILE_BYTES => {
            return Err(refused(format!("has {} bytes; no tokenizer is that large", found.len())));
        }
        Ok(_) => {}
    }
    std::fs::read(path).map(Some).map_err(|error| refused(error.to_string()))
}

fn read_json(path: &Path) -> Result<Option<Json>, TokenizerError> {
    let Some(bytes) = read_if_there(path)? else { return Ok(None) };
    let refused = |reason: String| TokenizerError::File { path: path.display().to_string(), reason };
    match serde_json::from_slice::<Json>(&bytes) {
        Ok(json) if json.is_object() => Ok(Some(json)),
        Ok(_) => Err(refused("must hold a JSON object".into())),
        Err(error) => Err(refused(error.to_string())),
    }
}

/// A token is a string, or an object with its `content`.
fn token_text(token: &Json) -> Option<String> {
    token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
}
