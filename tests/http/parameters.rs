//! Every sampling parameter outside its range, at its edge, and of the wrong type.

use serde_json::{Value, json};
use server::client::mock::MockConfig;
use server::http::HttpOptions;
use server::openai::sampling::SamplingDefaults;

use crate::harness::{TestServer, check_error, merged};

fn hello(extra: &Value) -> Value {
    merged(json!({"prompt": "Hello"}), extra)
}

#[tokio::test]
async fn values_out_of_range_are_refused() {
    let server = TestServer::new().start();
    let many: Vec<String> = (0..70).map(|i| format!("w{i}")).collect();
    let cases = [
        (json!({"temperature": -0.1}), Some("temperature")),
        (json!({"temperature": 2.1}), Some("temperature")),
        (json!({"top_p": 0}), Some("top_p")),
        (json!({"top_p": 1.01}), Some("top_p")),
        (json!({"top_k": -2}), Some("top_k")),
        (json!({"top_k": 5_000_000_000_i64}), Some("top_k")),
        (json!({"min_p": -0.1}), Some("min_p")),
        (json!({"min_p": 1.1}), Some("min_p")),
        (json!({"presence_penalty": 2.1}), Some("presence_penalty")),
        (json!({"presence_penalty": -2.1}), Some("presence_penalty")),
        (json!({"frequency_penalty": 2.1}), Some("frequency_penalty")),
        (json!({"frequency_penalty": -2.1}), Some("frequency_penalty")),
        (json!({"repetition_penalty": 0}), Some("repetition_penalty")),
        (json!({"repetition_penalty": -1}), Some("repetition_penalty")),
        (json!({"repetition_penalty": 1e300}), Some("repetition_penalty")),
        (json!({"repetition_penalty": 1e-300}), Some("repetition_penalty")),
        (json!({"n": 0}), None),
        (json!({"n": 16385}), None),
        (json!({"n": 2, "temperature": 0}), None),
        (json!({"best_of": 0}), None),
        (json!({"n": 3, "best_of": 2}), Some("best_of")),
        (json!({"max_tokens": 0}), Some("max_tokens")),
        (json!({"max_tokens": -1}), Some("max_tokens")),
        (json!({"max_tokens": 257}), Some("max_tokens")),
        (json!({"min_tokens": -1}), Some("min_tokens")),
        (json!({"min_tokens": 17}), Some("min_tokens")),
        (json!({"logprobs": 21}), Some("logprobs")),
        (json!({"logprobs": -1}), Some("logprobs")),
        (json!({"logprobs": -2}), Some("logprobs")),
        (json!({"prompt_logprobs": 21}), Some("prompt_logprobs")),
        (json!({"prompt_logprobs": -2}), Some("prompt_logprobs")),
        (json!({"stop": ""}), Some("stop")),
        (json!({"stop": ["a", ""]}), Some("stop")),
        (json!({"stop_token_ids": [258]}), Some("stop_token_ids")),
        (json!({"stop_token_ids": [-1]}), Some("stop_token_ids")),
        (json!({"allowed_token_ids": []}), Some("allowed_token_ids")),
        (json!({"allowed_token_ids": [258]}), Some("allowed_token_ids")),
        (json!({"logit_bias": {"258": 1}}), Some("logit_bias")),
        (json!({"logit_bias": {"x": 1}}), Some("logit_bias")),
        (json!({"logit_bias": {"1": "x"}}), Some("logit_bias")),
        (json!({"bad_words": [""]}), Some("bad_words")),
        (json!({"bad_words": many}), Some("bad_words")),
        (json!({"priority": 1}), Some("priority")),
        (json!({"prompt": [258]}), Some("prompt")),
        (json!({"prompt": [-1]}), Some("prompt")),
        (json!({"prompt": ""}), Some("prompt")),
        (json!({"prompt": []}), Some("prompt")),
        (json!({"prompt": ["a", ""]}), Some("prompt")),
        (json!({"prompt": vec![97; 257]}), Some("input_tokens")),
        (json!({"prompt": vec![97; 256]}), Some("max_tokens")),
        // 256 tokens are at most 256 characters: longer text is not even tokenized (it would panic here).
        (json!({"prompt": format!("PANIC{}", "a".repeat(252))}), Some("input_text")),
        (json!({"prompt": ["a", "é".repeat(257)]}), Some("input_text")),
        (json!({"prompt": "é".repeat(250)}), Some("input_tokens")),
    ];
    for (extra, param) in cases {
        let answer = server.complete(hello(&extra)).await;
        assert_eq!(answer.status, 400, "{extra}: {}", answer.body);
        check_error(&answer, 400, "BadRequestError", param);
    }
}

#[tokio::test]
async fn wrong_types_are_refused_by_path() {
    let server = TestServer::new().start();
    let cases = [
        (json!({"temperature": "hot"}), "body.temperature"),
        (json!({"top_p": [1]}), "body.top_p"),
        (json!({"top_k": 1.5}), "body.top_k"),
        (json!({"min_p": true}), "body.min_p"),
        (json!({"n": "2"}), "body.n"),
        (json!({"max_tokens": 1.5}), "body.max_tokens"),
        (json!({"stop": 5}), "body.stop"),
        (json!({"stop": ["a", 5]}), "body.stop"),
        (json!({"stop": ["a", "b", "c", "d", "e"]}), "body.stop"),
        (json!({"stop_token_ids": ["a"]}), "body.stop_token_ids"),
        (json!({"logit_bias": [1]}), "body.logit_bias"),
        (json!({"allowed_token_ids": 1}), "body.allowed_token_ids"),
        (json!({"bad_words": [1]}), "body.bad_words"),
        (json!({"ignore_eos": 3}), "body.ignore_eos"),
        (json!({"seed": 1e40}), "body.seed"),
        (json!({"echo": "yes"}), "body.echo"),
        (json!({"model": 1}), "body.model"),
        (json!({"stream": "no"}), "body.stream"),
        (json!({"stream_options": {}}), "body.stream_options"),
        (
            json!({"stream": true, "stream_options": {"include_usage": 1}}),
            "body.stream_options.include_usage",
        ),
        (json!({"stream": true, "prompt_logprobs": 1}), "body.prompt_logprobs"),
        (json!({"stream": true, "n": 1, "best_of": 2}), "body.best_of"),
        (json!({"stream_interval": 0}), "body.stream_interval"),
        (json!({"suffix": "x"}), "body.suffix"),
        (json!({"use_beam_search": true}), "body.use_beam_search"),
        (json!({"response_format": {"type": "json_schema"}}), "body.response_format"),
        (json!({"structured_outputs": {"regex": "a"}}), "body.structured_outputs"),
        (json!({"truncate_prompt_tokens": 0}), "body.truncate_prompt_tokens"),
        (json!({"truncate_prompt_tokens": -2}), "body.truncate_prompt_tokens"),
        (json!({"truncation_side": "up"}), "body.truncation_side"),
        (json!({"cache_salt": ""}), "body.cache_salt"),
        (json!({"cache_salt": "a/b"}), "body.cache_salt"),
        (json!({"cache_salt": "x".repeat(129)}), "body.cache_salt"),
        (json!({"request_id": "x".repeat(300)}), "body.request_id"),
        (json!({"prompt": 5}), "body.prompt"),
        (json!({"prompt": null}), "body.prompt"),
        (json!({"prompt": [1, "a"]}), "body.prompt"),
        (json!({"prompt": [[1], [1.5]]}), "body.prompt"),
        (json!({"prompt": {"a": 1}}), "body.prompt"),
    ];
    for (extra, param) in cases {
        let answer = server.complete(hello(&extra)).await;
        assert_eq!(answer.status, 400, "{extra}: {}", answer.body);
        check_error(&answer, 400, "Bad Request", Some(param));
    }
}

/// Each number of a body, below its range and above it; `None` where there is no such bound.
const NUMBERS: &[(&str, &str, Option<f64>, Option<f64>)] = &[
    ("completions", "n", Some(0.0), Some(16_385.0)),
    ("completions", "best_of", Some(0.0), Some(16_385.0)),
    ("completions", "temperature", Some(-0.01), Some(2.01)),
    ("completions", "top_p", Some(0.0), Some(1.01)),
    ("completions", "top_k", Some(-2.0), Some(5e9)),
    ("completions", "min_p", Some(-0.01), Some(1.01)),
    ("completions", "presence_penalty", Some(-2.01), Some(2.01)),
    ("completions", "frequency_penalty", Some(-2.01), Some(2.01)),
    ("completions", "repetition_penalty", Some(0.0), Some(1e300)),
    ("completions", "seed", Some(-1e30), Some(1e30)),
    ("completions", "max_tokens", Some(0.0), Some(257.0)),
    ("completions", "min_tokens", Some(-1.0), Some(257.0)),
    ("completions", "logprobs", Some(-2.0), Some(21.0)),
    ("completions", "prompt_logprobs", Some(-2.0), Some(21.0)),
    ("completions", "truncate_prompt_tokens", Some(-2.0), Some(1e30)),
    ("completions", "stream_interval", Some(0.0), Some(1e30)),
    ("completions", "priority", Some(-1.0), Some(1.0)),
    ("chat/completions", "max_completion_tokens", Some(0.0), Some(257.0)),
    ("chat/completions", "top_logprobs", Some(-2.0), Some(21.0)),
];

#[tokio::test]
async fn every_number_has_a_range() {
    let server = TestServer::new().start();
    for (endpoint, name, below, above) in NUMBERS {
        for value in [below, above].into_iter().flatten() {
            // Whole where it can be, so that it is the range that is refused and not the type.
            let value =
                if value.fract() == 0.0 && value.abs() < 1e18 { json!(*value as i64) } else { json!(value) };
            let mut body = json!({"prompt": "Hello", "messages": [{"role": "user", "content": "Hello"}]});
            if *name == "top_logprobs" {
                body["logprobs"] = json!(true);
            }
            body[*name] = value.clone();
            let answer = server.post(&format!("/v1/{endpoint}"), &body).await;
            assert_eq!(answer.status, 400, "{name} {value}: {}", answer.body);
            let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
            assert!(message.contains(name), "{name} {value}: {message}");
        }
    }
}

/// The table above has every name that the code reads as a number from a body.
#[test]
fn no_number_is_left_out() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../server/src/openai");
    let mut names = std::collections::BTreeSet::new();
    for file in std::fs::read_dir(dir).unwrap().map_while(Result::ok).filter(|f| f.path().is_file()) {
        let source = std::fs::read_to_string(file.path()).unwrap();
        let source = source.split("#[cfg(test)]").next().unwrap();
        for call in [".int(\"", ".number(\""] {
            names.extend(
                source.split(call).skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned),
            );
        }
    }
    let tried: std::collections::BTreeSet<String> = NUMBERS.iter().map(|row| row.1.to_owned()).collect();
    assert_eq!(names, tried);
}

#[tokio::test]
async fn values_at_the_edge_are_taken() {
    let server = TestServer::new().start();
    for extra in [
        json!({"temperature": 0, "top_p": 1, "top_k": -1, "min_p": 0}),
        json!({"temperature": 2, "top_p": 1e-300, "top_k": 0, "min_p": 1, "seed": -1}),
        json!({"temperature": 0.001, "seed": i64::MIN}),
        json!({"presence_penalty": -2, "frequency_penalty": 2, "repetition_penalty": 0.01}),
        json!({"max_tokens": 256, "min_tokens": 256}),
        json!({"n": 20, "logprobs": 20, "prompt_logprobs": 0}),
        json!({"logit_bias": {"0": 1000, "257": -1000}, "allowed_token_ids": [0, 257], "stop_token_ids": [257, 257]}),
        json!({"bad_words": ["x", "long word"], "stop": ["a", "b", "c", "d"], "priority": 0}),
        json!({"temperature": null, "n": null, "stop": null, "logprobs": null, "stream": null}),
        json!({"max_tokens": 3.0, "cache_salt": "tenant-1"}),
    ] {
        let answer = server.complete(hello(&extra)).await;
        assert_eq!(answer.status, 200, "{extra}: {}", answer.body);
    }
}

#[tokio::test]
async fn the_models_defaults_hold_where_the_request_is_silent() {
    let defaults = SamplingDefaults { temperature: Some(0.0), max_tokens: Some(2), ..Default::default() };
    let server = TestServer::with_defaults(MockConfig::new(64), HttpOptions::default(), defaults).start();
    let json = server.complete(json!({"prompt": "Hello"})).await.json();
    assert_eq!(json["usage"]["completion_tokens"], 2);
    // Greedy by default, so several answers are refused; a temperature of its own lifts that.
    check_error(&server.complete(hello(&json!({"n": 2}))).await, 400, "BadRequestError", None);
    assert_eq!(server.complete(hello(&json!({"n": 2, "temperature": 1}))).await.status, 200);
}
