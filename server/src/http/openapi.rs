//! `GET /openapi.json`: what this server's routes take and give. Fields are listed where clients generate code
//! from them; bodies may hold more, and unknown fields are ignored.

use axum::body::Body;
use axum::http::{Response, StatusCode};
use serde_json::{Map, Value, json};

use super::error::json_response;

/// The OpenAPI 3.1 document.
pub async fn document() -> Response<Body> {
    json_response(StatusCode::OK, build().to_string())
}

fn build() -> Value {
    json!({
        "openapi": "3.1.0",
        "info": { "title": "Pallium", "version": env!("CARGO_PKG_VERSION") },
        "paths": paths(),
        "components": { "schemas": schemas() }
    })
}

fn paths() -> Value {
    let mut paths = Map::new();
    let mut put = |path: &str, method: &str, operation: Value| {
        let entry = paths.entry(path).or_insert_with(|| json!({}));
        entry[method] = operation;
    };
    put(
        "/v1/completions",
        "post",
        operation("Create a completion", Some("CompletionRequest"), Answer::Model),
    );
    put(
        "/v1/chat/completions",
        "post",
        operation("Create a chat answer", Some("ChatRequest"), Answer::Model),
    );
    put("/v1/models", "get", operation("List the served names", None, Answer::Json));
    put("/v1/models/{name}", "get", with_name(operation("Show one served name", None, Answer::Json)));
    put(
        "/tokenize",
        "post",
        operation("Text or a conversation to ids", Some("TokenizeRequest"), Answer::Json),
    );
    put("/detokenize", "post", operation("Ids to text", Some("DetokenizeRequest"), Answer::Json));
    put("/health", "get", operation("Whether the engine lives and steps", None, Answer::Empty));
    put("/ready", "get", operation("Whether new requests are welcome", None, Answer::Empty));
    put("/ping", "get", operation("Health", None, Answer::Empty));
    put("/ping", "post", operation("Health", None, Answer::Empty));
    put("/version", "get", operation("The server's version", None, Answer::Json));
    put("/load", "get", operation("Requests in work", None, Answer::Json));
    put("/metrics", "get", operation("Prometheus metrics", None, Answer::Text));
    put("/openapi.json", "get", operation("This document", None, Answer::Json));
    Value::Object(paths)
}

#[derive(Clone, Copy, PartialEq)]
enum Answer {
    /// JSON, or events when `stream` is set.
    Model,
    Json,
    Text,
    Empty,
}

fn operation(summary: &str, body: Option<&str>, answer: Answer) -> Value {
    let content = match answer {
        Answer::Model => json!({ "application/json": {}, "text/event-stream": {} }),
        Answer::Json => json!({ "application/json": {} }),
        Answer::Text => json!({ "text/plain": {} }),
        Answer::Empty => json!({}),
    };
    let mut responses = json!({ "200": { "description": "OK", "content": content } });
    let error = json!({
        "description": "Error",
        "content": { "application/json": { "schema": { "$ref": "#/components/schemas/Error" } } }
    });
    if body.is_some() {
        for status in ["400", "404", "413", "500", "501"] {
            responses[status] = error.clone();
        }
    }
    if answer == Answer::Model {
        responses["429"] = error.clone();
        responses["503"] = error;
    }
    if answer == Answer::Empty {
        responses["503"] = json!({ "description": "Not healthy or not ready" });
    }
    let mut operation = json!({ "summary": summary, "responses": responses });
    if let Some(schema) = body {
        let schema = json!({ "$ref": format!("#/components/schemas/{schema}") });
        operation["requestBody"] =
            json!({ "required": true, "content": { "application/json": { "schema": schema } } });
    }
    operation
}

fn with_name(mut operation: Value) -> Value {
    operation["parameters"] =
        json!([{ "name": "name", "in": "path", "required": true, "schema": { "type": "string" } }]);
    operation["responses"]["404"] = json!({ "description": "No such model" });
    operation
}

fn schemas() -> Value {
    json!({
        "Error": {
            "type": "object",
            "required": ["error"],
            "properties": { "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": { "type": "string" },
                    "type": { "type": "string" },
                    "param": { "type": ["string", "null"] },
                    "code": { "type": "integer" }
                }
            } }
        },
        "CompletionRequest": object(&["prompt"], &[common(), sampling(), completion()]),
        "ChatRequest": object(&["messages"], &[common(), sampling(), conversation(), chat()]),
        "TokenizeRequest": object(&[], &[conversation(), json!({
            "model": nullable("string"),
            "prompt": nullable("string"),
            "return_token_strs": nullable("boolean")
        })]),
        "DetokenizeRequest": object(&["tokens"], &[json!({
            "model": nullable("string"),
            "tokens": { "type": "array", "items": { "type": "integer", "minimum": 0 } }
        })]),
    })
}

fn object(required: &[&str], parts: &[Value]) -> Value {
    let properties: Map<String, Value> =
        parts.iter().filter_map(Value::as_object).flat_map(|m| m.clone().into_iter()).collect();
    json!({ "type": "object", "required": required, "properties": properties })
}

fn nullable(kind: &str) -> Value {
    json!({ "type": [kind, "null"] })
}

fn ranged(kind: &str, minimum: f64, maximum: f64) -> Value {
    json!({ "type": [kind, "null"], "minimum": minimum, "maximum": maximum })
}

fn integers() -> Value {
    json!({ "type": ["array", "null"], "items": { "type": "integer" } })
}

fn strings(most: u32) -> Value {
    json!({ "type": ["array", "null"], "items": { "type": "string" }, "maxItems": most })
}

fn common() -> Value {
    json!({
        "model": nullable("string"),
        "stream": nullable("boolean"),
        "stream_options": {
            "type": ["object", "null"],
            "properties": { "include_usage": nullable("boolean"), "continuous_usage_stats": nullable("boolean") }
        },
        "stream_interval": ranged("integer", 1.0, 4_294_967_295.0),
        "request_id": nullable("string"),
        "cache_salt": { "type": ["string", "null"], "minLength": 1, "maxLength": 128, "pattern": "^[^@/\\\\]*$" },
        "priority": ranged("integer", -2_147_483_648.0, 2_147_483_647.0),
        "return_token_ids": nullable("boolean"),
        "return_tokens_as_token_ids": nullable("boolean"),
        "truncate_prompt_tokens": { "type": ["integer", "null"], "minimum": -1 },
        "truncation_side": { "enum": ["left", "right", null] },
        "add_special_tokens": nullable("boolean"),
        "echo": nullable("boolean")
    })
}

fn sampling() -> Value {
    json!({
        "n": ranged("integer", 1.0, 16_384.0),
        "max_tokens": nullable("integer"),
        "min_tokens": { "type": ["integer", "null"], "minimum": 0 },
        "temperature": ranged("number", 0.0, 2.0),
        "top_p": { "type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1 },
        "top_k": { "type": ["integer", "null"], "minimum": -1 },
        "min_p": ranged("number", 0.0, 1.0),
        "presence_penalty": ranged("number", -2.0, 2.0),
        "frequency_penalty": ranged("number", -2.0, 2.0),
        "repetition_penalty": { "type": ["number", "null"], "exclusiveMinimum": 0 },
        "seed": nullable("integer"),
        "stop": { "anyOf": [{ "type": ["string", "null"], "minLength": 1 }, strings(4)] },
        "stop_token_ids": integers(),
        "ignore_eos": nullable("boolean"),
        "include_stop_str_in_output": nullable("boolean"),
        "skip_special_tokens": nullable("boolean"),
        "spaces_between_special_tokens": nullable("boolean"),
        "prompt_logprobs": { "type": ["integer", "null"], "minimum": -1 },
        "logit_bias": { "type": ["object", "null"], "additionalProperties": { "type": "number" } },
        "allowed_token_ids": integers(),
        "bad_words": strings(128),
        "response_format": { "type": ["object", "null"], "properties": { "type": { "enum": ["text", null] } } }
    })
}

fn completion() -> Value {
    let ids = json!({ "type": "array", "items": { "type": "integer" }, "minItems": 1 });
    json!({
        "prompt": { "anyOf": [
            { "type": "string", "minLength": 1 },
            { "type": "array", "items": { "type": "string" }, "minItems": 1 },
            ids,
            { "type": "array", "items": ids, "minItems": 1 }
        ] },
        "best_of": ranged("integer", 1.0, 16_384.0),
        "logprobs": { "type": ["integer", "null"], "minimum": -1 }
    })
}

fn conversation() -> Value {
    json!({
        "messages": { "type": "array", "items": {
            "type": "object",
            "required": ["role"],
            "properties": { "role": { "type": "string" }, "content": {} }
        } },
        "tools": { "type": ["array", "null"], "items": { "type": "object" }, "minItems": 1 },
        "documents": { "type": ["array", "null"], "items": { "type": "object" } },
        "add_generation_prompt": nullable("boolean"),
        "continue_final_message": nullable("boolean"),
        "add_special_tokens": nullable("boolean"),
        "chat_template": nullable("string"),
        "chat_template_kwargs": nullable("object")
    })
}

fn chat() -> Value {
    json!({
        "max_completion_tokens": nullable("integer"),
        "logprobs": nullable("boolean"),
        "top_logprobs": { "type": ["integer", "null"], "minimum": -1 },
        "tool_choice": { "enum": ["none", "auto", null] },
        "parallel_tool_calls": nullable("boolean"),
        "reasoning_effort": nullable("string")
    })
}
