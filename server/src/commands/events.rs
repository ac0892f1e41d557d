//! The events of a streamed answer, read back into pieces of text.

use serde_json::Value;

/// One piece of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    pub text: String,
    /// What a server sends apart from the answer as its thinking.
    pub reasoning: String,
    /// Why the answer ended, with its last piece.
    pub finish: Option<String>,
    /// Tokens of the whole answer, with the piece that reports usage.
    pub completion_tokens: Option<u64>,
}

/// From bytes to [`Delta`]s, however the bytes are cut.
#[derive(Debug, Default)]
pub struct EventReader {
    bytes: Vec<u8>,
    /// Start of what was not looked at.
    at: usize,
    done: bool,
}

impl EventReader {
    /// Takes bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.at);
        self.at = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// Whether `[DONE]` was read.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// The next whole event; `None` until more bytes come.
    ///
    /// # Errors
    /// An error event, in its own words, or an event that is no JSON.
    #[expect(clippy::should_implement_trait, reason = "after None it may go on, so it is no iterator")]
    pub fn next(&mut self) -> Option<Result<Delta, String>> {
        while !self.done {
            let end = self.bytes[self.at..].iter().position(|b| *b == b'\n')? + self.at;
            let line = std::mem::replace(&mut self.at, end + 1)..end;
            let Some(data) = self.bytes[line].strip_prefix(b"data:") else { continue };
            let data = data.trim_ascii();
            if data == b"[DONE]" {
                self.done = true;
                return None;
            }
            return Some(delta(data));
        }
        None
    }
}

fn delta(data: &[u8]) -> Result<Delta, String> {
    let event: Value = serde_json::from_slice(data).map_err(|e| format!("an event that is no JSON: {e}"))?;
    if event.get("error").is_some() {
        return Err(message_of(&event).unwrap_or_else(|| event.to_string()));
    }
    let text = |pointers: &[&str]| {
        let found = pointers.iter().find_map(|p| event.pointer(p).and_then(Value::as_str));
        found.unwrap_or_default().to_owned()
    };
    Ok(Delta {
        text: text(&["/choices/0/delta/content", "/choices/0/text"]),
        reasoning: text(&["/choices/0/delta/reasoning", "/choices/0/delta/reasoning_content"]),
        finish: event.pointer("/choices/0/finish_reason").and_then(Value::as_str).map(str::to_owned),
        completion_tokens: event.pointer("/usage/completion_tokens").and_then(Value::as_u64),
    })
}

/// The sentence in an error answer, whichever of the usual shapes it has.
pub fn error_text(status: u16, body: &[u8]) -> String {
    let parsed: Value = serde_json::from_slice(body).unwrap_or_default();
    message_of(&parsed).unwrap_or_else(|| {
        let text = String::from_utf8_lossy(body);
        format!("HTTP {status} {}", text.chars().take(200).collect::<String>()).trim_end().to_owned()
    })
}

fn message_of(body: &Value) -> Option<String> {
    let found = ["/error/message", "/error", "/message", "/detail"];
    found.iter().find_map(|p| body.pointer(p).and_then(Value::as_str)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const STREAM: &str = concat!(
        ": keep-alive\n\n",
        "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"reasoning\":\"hm\"}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\"é\u{4f60}\"}}]}\r\n\r\n",
        "data: {\"choices\":[{\"text\":\"!\",\"finish_reason\":\"stop\"}]}\n\n",
        "data:{\"choices\":[],\"usage\":{\"completion_tokens\":3}}\n\n",
        "data: [DONE]\n\n",
    );

    fn read(chunk_bytes: usize) -> Vec<Delta> {
        let (mut reader, mut deltas) = (EventReader::default(), Vec::new());
        for chunk in STREAM.as_bytes().chunks(chunk_bytes) {
            reader.push(chunk);
            while let Some(delta) = reader.next() {
                deltas.push(delta.unwrap());
            }
        }
        assert!(reader.is_done());
        deltas
    }

    #[test]
    fn pieces_do_not_depend_on_how_the_bytes_are_cut() {
        let whole = read(usize::MAX);
        let texts: Vec<&str> = whole.iter().map(|d| d.text.as_str()).collect();
        assert_eq!(texts, ["", "", "é\u{4f60}", "!", ""]);
        assert_eq!(whole[1].reasoning, "hm");
        assert_eq!(whole[3].finish.as_deref(), Some("stop"));
        assert_eq!(whole[4].completion_tokens, Some(3));
        for bytes in 1..20 {
            assert_eq!(read(bytes), whole, "cut every {bytes} bytes");
        }
    }

    #[test]
    fn errors_are_told_in_their_own_words() {
        let mut reader = EventReader::default();
        reader.push(b"data: {\"error\":{\"message\":\"lost\"}}\ndata: {\n");
        assert_eq!(reader.next(), Some(Err("lost".to_owned())));
        assert!(reader.next().unwrap().unwrap_err().contains("no JSON"));
        for (body, wanted) in [
            (r#"{"error":{"message":"no such model"}}"#, "no such model"),
            (r#"{"error":"Unauthorized"}"#, "Unauthorized"),
            (r#"{"detail":"Not Found"}"#, "Not Found"),
            ("<html>", "HTTP 502 <html>"),
            ("", "HTTP 502"),
        ] {
            assert_eq!(error_text(502, body.as_bytes()), wanted);
        }
    }
}
