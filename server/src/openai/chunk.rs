//! Stream chunks, written straight into the connection's buffer: what all chunks of an answer share is
//! serialized once.

use bytes::{BufMut, BytesMut};
use serde::Serialize;

use super::types::{RequestMetrics, Usage};

/// The part of a chunk before its choices, and the usage options.
pub struct ChunkWriter {
    /// `data: {"id":...,"choices":[`
    head: Vec<u8>,
}

impl ChunkWriter {
    /// For one answer.
    pub fn new(id: &str, object: &str, created: u64, model: &str) -> ChunkWriter {
        let mut head = Vec::with_capacity(256);
        head.extend_from_slice(b"data: {\"id\":");
        put_json_vec(&mut head, id);
        head.extend_from_slice(b",\"object\":");
        put_json_vec(&mut head, object);
        head.extend_from_slice(format!(",\"created\":{created},\"model\":").as_bytes());
        put_json_vec(&mut head, model);
        head.extend_from_slice(b",\"choices\":[");
        ChunkWriter { head }
    }

    /// Begins a chunk with one choice up to and with its index: `{"index":N`.
    pub fn begin(&self, out: &mut BytesMut, index: usize) {
        out.put_slice(&self.head);
        out.put_slice(b"{\"index\":");
        put_number(out, index as u64);
    }

    /// Ends the choice and the chunk.
    pub fn end(&self, out: &mut BytesMut, usage: Option<&Usage>) {
        out.put_slice(b"}]");
        self.close(out, usage);
    }

    /// The chunk without choices that carries the usage, and the request's timings where they are wanted.
    pub fn usage(&self, out: &mut BytesMut, usage: &Usage, metrics: Option<&RequestMetrics>) {
        out.put_slice(&self.head);
        out.put_slice(b"]");
        if let Some(metrics) = metrics {
            put_field(out, "metrics", metrics);
        }
        self.close(out, Some(usage));
    }

    fn close(&self, out: &mut BytesMut, usage: Option<&Usage>) {
        if let Some(usage) = usage {
            put_usage(out, usage);
        }
        out.put_slice(b"}\n\n");
    }
}

/// Unlike a whole answer, a chunk leaves out what is not set.
fn put_usage(out: &mut BytesMut, usage: &Usage) {
    for (name, count) in [
        (&b",\"usage\":{\"prompt_tokens\":"[..], usage.prompt_tokens),
        (b",\"total_tokens\":", usage.total_tokens),
        (b",\"completion_tokens\":", usage.completion_tokens),
    ] {
        out.put_slice(name);
        put_number(out, count);
    }
    if let Some(details) = &usage.prompt_tokens_details {
        put_field(out, "prompt_tokens_details", details);
    }
    out.put_slice(b"}");
}

/// Appends `,"name":value`.
pub fn put_field<T: Serialize + ?Sized>(out: &mut BytesMut, name: &str, value: &T) {
    out.put_slice(b",\"");
    out.put_slice(name.as_bytes());
    out.put_slice(b"\":");
    put_json(out, value);
}

/// Appends a value. Only maps with keys that are no strings fail, and there are none here.
pub fn put_json<T: Serialize + ?Sized>(out: &mut BytesMut, value: &T) {
    let start = out.len();
    if serde_json::to_writer((&mut *out).writer(), value).is_err() {
        out.truncate(start);
        out.put_slice(b"null");
    }
}

fn put_json_vec(out: &mut Vec<u8>, value: &str) {
    let start = out.len();
    if serde_json::to_writer(&mut *out, value).is_err() {
        out.truncate(start);
        out.extend_from_slice(b"null");
    }
}

fn put_number(out: &mut BytesMut, mut number: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.put_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn chunks_are_json() {
        let writer = ChunkWriter::new("cmpl-\"1", "text_completion", 7, "m\u{1F600}");
        let mut out = BytesMut::new();
        writer.begin(&mut out, 1234567890);
        put_field(&mut out, "text", "a\n\"b\u{7}é");
        writer.end(&mut out, None);
        writer.usage(&mut out, &Usage::new(3, 4, None), None);
        let text = std::str::from_utf8(&out).unwrap();
        let events: Vec<serde_json::Value> = text
            .split_terminator("\n\n")
            .map(|e| serde_json::from_str(e.strip_prefix("data: ").unwrap()).unwrap())
            .collect();
        assert_eq!(events[0]["choices"][0]["text"], "a\n\"b\u{7}é");
        assert_eq!(events[0]["choices"][0]["index"], 1234567890);
        assert_eq!(events[0]["id"], "cmpl-\"1");
        assert_eq!(events[1]["choices"], serde_json::json!([]));
        let usage = serde_json::json!({"prompt_tokens": 3, "total_tokens": 7, "completion_tokens": 4});
        assert_eq!(events[1]["usage"], usage);
    }
}
