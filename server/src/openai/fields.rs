//! Reading a JSON body field by field. Unknown fields are ignored, `null` is the same as absent, and what is
//! wrong is collected, so that one answer names up to [`MAX_REPORTED`] mistakes by their path.

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Request, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::{Map, Value};

use crate::http::error::ApiError;
use crate::http::limits::BODY_TIMEOUT;

/// Mistakes named in one answer.
const MAX_REPORTED: usize = 10;

/// A JSON object that is being read.
pub struct Fields {
    map: Map<String, Value>,
    path: String,
    wrong: Vec<(String, String)>,
}

/// Reads a whole body.
///
/// # Errors
/// 400 when the content type is not JSON, 413 when it is too long, 400 when it does not arrive.
pub async fn read_body(request: Request<Body>, max_bytes: usize) -> Result<Bytes, ApiError> {
    check_content_type(request.headers())?;
    let collected =
        tokio::time::timeout(BODY_TIMEOUT, Limited::new(request.into_body(), max_bytes).collect()).await;
    match collected {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(e)) if e.is::<LengthLimitError>() => Err(ApiError::too_large(max_bytes)),
        Ok(Err(e)) => Err(ApiError::schema(format!("The request body could not be read: {e}"))),
        Err(_) => Err(ApiError::schema("The request body did not arrive in time.")),
    }
}

impl Fields {
    /// Parses a body.
    ///
    /// # Errors
    /// 400 `Bad Request` when it is not UTF-8, not JSON, or no object.
    pub fn parse(body: &[u8]) -> Result<Fields, ApiError> {
        let text = std::str::from_utf8(body).map_err(|e| {
            ApiError::schema(format!("The body is not valid UTF-8: wrong byte at {}.", e.valid_up_to()))
        })?;
        match serde_json::from_str::<Value>(text) {
            Ok(Value::Object(map)) => Ok(Fields { map, path: "body".into(), wrong: Vec::new() }),
            Ok(_) => Err(ApiError::schema("The body must be a JSON object.").with_param("body")),
            Err(e) => Err(ApiError::schema(format!("The body is not valid JSON: {e}"))),
        }
    }

    /// Takes a field out; `None` when absent or null.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|v| !v.is_null())
    }

    /// Whether the field is there, be it null.
    pub fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// Notes a mistake in a field.
    pub fn reject(&mut self, name: &str, what: impl Into<String>) {
        self.wrong.push((format!("{}.{name}", self.path), what.into()));
    }

    /// A whole number; a float without a fraction is one too.
    pub fn int(&mut self, name: &str) -> Option<i64> {
        let value = self.take(name)?;
        let int = value.as_i64().or_else(|| {
            let x = value.as_f64().filter(|x| x.fract() == 0.0 && x.abs() < 9.0e15)?;
            (!value.is_u64()).then_some(x as i64)
        });
        self.or_reject(name, int, &value, "a whole number of 64 bits")
    }

    /// A number.
    pub fn number(&mut self, name: &str) -> Option<f64> {
        let value = self.take(name)?;
        self.or_reject(name, value.as_f64(), &value, "a number")
    }

    /// A truth value.
    pub fn flag(&mut self, name: &str) -> Option<bool> {
        let value = self.take(name)?;
        self.or_reject(name, value.as_bool(), &value, "true or false")
    }

    /// A string.
    pub fn text(&mut self, name: &str) -> Option<String> {
        match self.take(name)? {
            Value::String(s) => Some(s),
            other => self.or_reject(name, None, &other, "a string"),
        }
    }

    /// A JSON object.
    pub fn object(&mut self, name: &str) -> Option<Map<String, Value>> {
        match self.take(name)? {
            Value::Object(map) => Some(map),
            other => self.or_reject(name, None, &other, "an object"),
        }
    }

    /// A JSON list.
    pub fn list(&mut self, name: &str) -> Option<Vec<Value>> {
        match self.take(name)? {
            Value::Array(list) => Some(list),
            other => self.or_reject(name, None, &other, "a list"),
        }
    }

    /// A list of whole numbers.
    pub fn ints(&mut self, name: &str) -> Option<Vec<i64>> {
        let list = self.list(name)?;
        let ints: Option<Vec<i64>> = list.iter().map(Value::as_i64).collect();
        self.or_reject(name, ints, &Value::Array(list), "a list of whole numbers")
    }

    /// A list of strings.
    pub fn texts(&mut self, name: &str) -> Option<Vec<String>> {
        let list = self.list(name)?;
        let texts: Option<Vec<String>> = list.iter().map(|v| v.as_str().map(str::to_string)).collect();
        self.or_reject(name, texts, &Value::Array(list), "a list of strings")
    }

    /// A string or a list of strings.
    pub fn text_or_texts(&mut self, name: &str) -> Option<Vec<String>> {
        match self.map.get(name) {
            Some(Value::String(_)) => self.text(name).map(|s| vec![s]),
            _ => self.texts(name),
        }
    }

    /// Runs `read` on a nested object, whose mistakes are reported under its path.
    pub fn nested<T>(&mut self, name: &str, read: impl FnOnce(&mut Fields) -> T) -> Option<T> {
        let map = self.object(name)?;
        let mut inner = Fields { map, path: format!("{}.{name}", self.path), wrong: Vec::new() };
        let value = read(&mut inner);
        self.wrong.append(&mut inner.wrong);
        Some(value)
    }

    /// Ends the schema stage.
    ///
    /// # Errors
    /// 400 `Bad Request` naming the mistakes; `param` is the path of the first.
    pub fn check(&mut self) -> Result<(), ApiError> {
        let Some((path, _)) = self.wrong.first() else { return Ok(()) };
        let path = path.clone();
        let mut lines: Vec<String> =
            self.wrong.iter().take(MAX_REPORTED).map(|(path, what)| format!("{path}: {what}")).collect();
        if self.wrong.len() > MAX_REPORTED {
            lines.push(format!("and {} more", self.wrong.len() - MAX_REPORTED));
        }
        Err(ApiError::schema(lines.join("; ")).with_param(path))
    }

    fn or_reject<T>(&mut self, name: &str, read: Option<T>, value: &Value, wanted: &str) -> Option<T> {
        if read.is_none() {
            self.reject(name, format!("must be {wanted}, got {}", shorten(value)));
        }
        read
    }
}

/// A value for an error message, cut to a readable length.
pub fn shorten(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(ApiError::schema(format!("Unsupported media type `{essence}`: only `application/json` is allowed.")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn mistakes_are_collected_by_path() {
        let body = br#"{"a": "x", "b": 1.5, "c": 2.0, "d": null, "e": {"f": 1}, "g": [1, "2"], "h": 9223372036854775808}"#;
        let mut f = Fields::parse(body).unwrap();
        assert_eq!(f.number("a"), None);
        assert_eq!(f.int("b"), None);
        assert_eq!(f.int("c"), Some(2));
        assert_eq!(f.int("d"), None);
        assert_eq!(f.nested("e", |e| e.flag("f")), Some(None));
        assert_eq!(f.ints("g"), None);
        assert_eq!(f.int("h"), None);
        let error = f.check().unwrap_err();
        assert_eq!(error.param.as_deref(), Some("body.a"));
        for path in ["body.a", "body.b", "body.e.f", "body.g", "body.h"] {
            assert!(error.message.contains(path), "{path}: {}", error.message);
        }
        assert!(!error.message.contains("body.c") && !error.message.contains("body.d"));
    }

    #[test]
    fn ten_mistakes_are_named() {
        let mut f = Fields::parse(b"{}").unwrap();
        for i in 0..12 {
            f.reject(&format!("x{i}"), "wrong");
        }
        let message = f.check().unwrap_err().message;
        assert!(
            message.contains("x9") && !message.contains("x10") && message.ends_with("and 2 more"),
            "{message}"
        );
    }

    #[test]
    fn bodies_that_are_no_objects_are_refused() {
        let deep = [b'['; 10_000];
        for body in [&b"\xff{}"[..], b"{", b"[]", b"1", b"", b"{\"a\": NaN}", &deep] {
            assert_eq!(Fields::parse(body).err().map(|e| e.status.as_u16()), Some(400));
        }
    }
}
