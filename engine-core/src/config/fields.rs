//! [`Fields`]: typed look-ups in a JSON object, whose errors name the file, the key and what is wanted.

use std::path::Path;

use serde_json::{Map, Value};

use crate::limits::MAX_CONFIG_BYTES;
use crate::{Error, Result};

/// Reads a JSON object from a file of at most [`MAX_CONFIG_BYTES`].
///
/// # Errors
/// [`Error::Io`] when it cannot be read, [`Error::Config`] when it is too large or no JSON object.
pub fn read_json(path: &Path) -> Result<Map<String, Value>> {
    let size = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
    if size > MAX_CONFIG_BYTES {
        return Err(Error::Config(format!(
            "{}: is {size} bytes long; a configuration file has at most {MAX_CONFIG_BYTES}",
            path.display()
        )));
    }
    let text = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let bad = |reason: String| Error::Config(format!("{}: {reason}", path.display()));
    match serde_json::from_slice(&text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(bad(format!("is {}; a JSON object is wanted", brief(&other)))),
        Err(e) => Err(bad(format!("is no valid JSON: {e}{}", not_json_hint(&text)))),
    }
}

/// Python writes NaN and Infinity, which JSON does not know.
fn not_json_hint(text: &[u8]) -> &'static str {
    let has = |word: &[u8]| text.windows(word.len()).any(|w| w == word);
    if has(b"NaN") || has(b"Infinity") { " (NaN and Infinity are no JSON numbers)" } else { "" }
}

/// A JSON object with the name of where it stands. A key whose value is `null` counts as absent.
#[derive(Clone, Copy)]
pub struct Fields<'a> {
    origin: &'a str,
    prefix: &'a str,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// Look-ups in `map`, the top level of the file called `origin`.
    pub fn new(origin: &'a str, map: &'a Map<String, Value>) -> Self {
        Fields { origin, prefix: "", map }
    }

    /// Look-ups in an object below; `prefix` is its path with a trailing dot (`rope_scaling.`).
    pub fn nested(&self, prefix: &'a str, map: &'a Map<String, Value>) -> Self {
        Fields { origin: self.origin, prefix, map }
    }

    /// The raw value; `None` when absent or null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// An error that names the file, the key, its value, and `wanted`.
    pub fn wrong(&self, key: &str, wanted: &str) -> Error {
        let Fields { origin, prefix, .. } = self;
        Error::Config(match self.get(key) {
            Some(value) => format!("{origin}: {prefix}{key} is {}; {wanted} is wanted", brief(value)),
            None => format!("{origin}: {prefix}{key} is missing; {wanted} is wanted"),
        })
    }

    /// An error about several values, or about the whole file: its name and `text`.
    pub fn error(&self, text: impl std::fmt::Display) -> Error {
        Error::Config(format!("{}: {text}", self.origin))
    }

    /// A whole number of at least `least`, if present.
    ///
    /// # Errors
    /// When it is anything else, as with the other look-ups.
    pub fn u32(&self, key: &str, least: u32) -> Result<Option<u32>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let whole = as_whole(value).and_then(|n| u32::try_from(n).ok()).filter(|n| *n >= least);
        whole.map(Some).ok_or_else(|| self.wrong(key, &format!("a whole number of at least {least}")))
    }

    /// A whole number from 1 up that has to be there.
    ///
    /// # Errors
    /// When it is missing or anything else.
    pub fn count(&self, key: &str) -> Result<u32> {
        self.u32(key, 1)?.ok_or_else(|| self.wrong(key, "a whole number of at least 1"))
    }

    /// A finite number, if present.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn f64(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_f64().filter(|x| x.is_finite());
        number.map(Some).ok_or_else(|| self.wrong(key, "a number"))
    }

    /// A finite number above zero, if present.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn positive(&self, key: &str) -> Result<Option<f64>> {
        match self.f64(key)? {
            Some(x) if x <= 0.0 => Err(self.wrong(key, "a number above 0")),
            other => Ok(other),
        }
    }

    /// A finite number above zero that has to be there.
    ///
    /// # Errors
    /// When it is missing or anything else.
    pub fn required_positive(&self, key: &str) -> Result<f64> {
        self.positive(key)?.ok_or_else(|| self.wrong(key, "a number above 0"))
    }

    /// True or false, if present.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.wrong(key, "true or false"))
    }

    /// A string, if present.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn str(&self, key: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(key, "a string"))
    }

    /// A list of strings; empty when absent.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn strings(&self, key: &str) -> Result<Vec<String>> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let list = value.as_array().and_then(|a| a.iter().map(|v| v.as_str().map(str::to_owned)).collect());
        list.ok_or_else(|| self.wrong(key, "a list of strings"))
    }

    /// A list of numbers above zero that has to be there.
    ///
    /// # Errors
    /// When it is missing or anything else.
    pub fn positives(&self, key: &str) -> Result<Vec<f64>> {
        let wanted = "a list of numbers above 0";
        let list = self.get(key).and_then(Value::as_array).ok_or_else(|| self.wrong(key, wanted))?;
        let good = |v: &Value| v.as_f64().filter(|x| x.is_finite() && *x > 0.0);
        list.iter().map(good).collect::<Option<_>>().ok_or_else(|| self.wrong(key, wanted))
    }

    /// One token id, if present.
    ///
    /// # Errors
    /// When it is no token id.
    pub fn token_id(&self, key: &str) -> Result<Option<u32>> {
        Ok(self.token_ids(key)?.first().copied())
    }

    /// A token id or a list of them; empty when absent. Duplicates are dropped, the order kept.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn token_ids(&self, key: &str) -> Result<Vec<u32>> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let one = |v: &Value| as_whole(v).and_then(|n| u32::try_from(n).ok());
        let ids: Option<Vec<u32>> = match value {
            Value::Array(list) => list.iter().map(one).collect(),
            single => one(single).map(|id| vec![id]),
        };
        let ids = ids.ok_or_else(|| self.wrong(key, "a token id or a list of token ids"))?;
        let mut unique = Vec::with_capacity(ids.len().min(64));
        for id in ids {
            if !unique.contains(&id) {
                unique.push(id);
            }
        }
        Ok(unique)
    }

    /// An object, if present.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn object(&self, key: &str) -> Result<Option<&'a Map<String, Value>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_object().map(Some).ok_or_else(|| self.wrong(key, "an object"))
    }
}

/// A whole number, also when written as `4096.0`.
fn as_whole(value: &Value) -> Option<u64> {
    let whole = |x: f64| (x.fract() == 0.0 && (0.0..9e15).contains(&x)).then_some(x as u64);
    value.as_u64().or_else(|| value.as_f64().and_then(whole))
}

/// The value as JSON, cut to a length that fits a message.
pub(super) fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}
