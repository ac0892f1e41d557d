//! One request as bytes.

use serde_json::{Map, Value, json};

use super::connection::Endpoint;
use super::dataset::{Prompt, Sample};
use crate::cli::{BenchBackend, BenchServeArgs};

/// Writes requests: what all of them share is prepared once.
pub struct RequestWriter {
    backend: BenchBackend,
    head: String,
    fields: Map<String, Value>,
}

impl RequestWriter {
    /// For one bench.
    pub fn new(args: &BenchServeArgs, endpoint: &Endpoint, model: &str) -> RequestWriter {
        let mut fields = Map::new();
        fields.insert("model".into(), json!(model));
        fields.insert("stream".into(), json!(true));
        fields.insert("stream_options".into(), json!({ "include_usage": true }));
        let s = &args.sampling;
        let mut put = |name: &str, value: Option<Value>| fields.extend(value.map(|v| (name.to_string(), v)));
        // Greedy unless said otherwise, so that runs compare.
        put("temperature", Some(json!(s.temperature.unwrap_or(0.0))));
        put("top_p", s.top_p.map(|v| json!(v)));
        put("top_k", s.top_k.map(|v| json!(v)));
        put("min_p", s.min_p.map(|v| json!(v)));
        put("frequency_penalty", s.frequency_penalty.map(|v| json!(v)));
        put("presence_penalty", s.presence_penalty.map(|v| json!(v)));
        put("repetition_penalty", s.repetition_penalty.map(|v| json!(v)));
        put("ignore_eos", args.ignore_eos.then_some(json!(true)));
        fields.extend(args.extra_body.clone());
        if fields.get("stream") == Some(&json!(false)) {
            fields.remove("stream_options");
        }
        RequestWriter { backend: args.backend, head: head(args, endpoint), fields }
    }

    /// The bytes of one request.
    pub fn request(&self, sample: &Sample) -> Vec<u8> {
        let mut fields = self.fields.clone();
        let length = match self.backend {
            BenchBackend::Openai => "max_tokens",
            BenchBackend::OpenaiChat => "max_completion_tokens",
        };
        fields.entry(length).or_insert(json!(sample.output_len));
        match (self.backend, &sample.prompt) {
            (BenchBackend::Openai, Prompt::Ids(ids)) => fields.insert("prompt".into(), json!(ids)),
            (BenchBackend::Openai, Prompt::Text(text)) => fields.insert("prompt".into(), json!(text)),
            (BenchBackend::OpenaiChat, Prompt::Text(text)) => {
                fields.insert("messages".into(), json!([{ "role": "user", "content": text }]))
            }
            // The data sets give chat text only.
            (BenchBackend::OpenaiChat, Prompt::Ids(_)) => None,
        };
        let body = Value::Object(fields).to_string();
        format!("{}content-length: {}\r\n\r\n{body}", self.head, body.len()).into_bytes()
    }
}

fn head(args: &BenchServeArgs, endpoint: &Endpoint) -> String {
    let path = &args.endpoint;
    let mut head =
        format!("POST {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\n", endpoint.host());
    head.push_str(&headers(args));
    head
}

/// The headers that every request has.
pub fn headers(args: &BenchServeArgs) -> String {
    let mut lines = String::new();
    if let Some(key) = &args.api_key {
        lines.push_str(&format!("authorization: Bearer {}\r\n", key.expose()));
    }
    for (name, value) in &args.headers {
        lines.push_str(&format!("{name}: {value}\r\n"));
    }
    lines
}
