//! `/v1/completions`: whole and streamed.

use serde_json::{Value, json};
use server::client::mock::MockConfig;
use server::http::HttpOptions;

use crate::harness::{TestServer, check_error, merged};

fn texts(events: &[Value]) -> String {
    events.iter().filter_map(|e| e["choices"][0]["text"].as_str()).collect()
}

#[tokio::test]
async fn a_whole_answer_has_every_field() {
    let server = TestServer::new().start();
    let answer = server.complete(json!({"model": "mock", "prompt": "Hi!", "request_id": "r1"})).await;
    assert_eq!(answer.headers["content-type"], "application/json");
    let mut json = answer.json();
    assert!(json["created"].as_u64().is_some_and(|t| t > 1_600_000_000));
    json["created"] = json!(0);
    assert_eq!(
        json,
        json!({
            "id": "cmpl-r1", "object": "text_completion", "created": 0, "model": "mock",
            "choices": [{
                "index": 0, "text": "Hi!", "logprobs": null, "finish_reason": "stop", "stop_reason": null,
                "token_ids": null, "prompt_logprobs": null, "prompt_token_ids": null
            }],
            "service_tier": null,
            "system_fingerprint": format!("pallium-{}", env!("CARGO_PKG_VERSION")),
            "usage": {"prompt_tokens": 4, "total_tokens": 9, "completion_tokens": 5, "prompt_tokens_details": null},
            "kv_transfer_params": null, "metrics": null
        })
    );
}

#[tokio::test]
async fn a_stream_is_chunks_usage_and_done() {
    let server = TestServer::new().start();
    let body = json!({
        "model": "mock", "prompt": [72, 105], "request_id": "r2", "stream": true, "max_tokens": 2,
        "stream_options": {"include_usage": true}
    });
    let answer = server.complete(body).await;
    assert_eq!(answer.headers["content-type"], "text/event-stream; charset=utf-8");
    let events = answer.events();
    let (usage, chunks) = events.split_last().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], 2);
    assert_eq!(usage["usage"]["prompt_tokens"], 2);
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "length");
    assert_eq!(texts(chunks), "Hi");
    for event in &events {
        assert_eq!(event["id"], "cmpl-r2");
        assert_eq!(event["object"], "text_completion");
    }
    assert!(chunks.iter().all(|c| c.get("usage").is_none()), "no usage before the end");
}

#[tokio::test]
async fn streamed_text_equals_whole_text() {
    let server = TestServer::new().start();
    let variants = [
        (json!({}), "plain"),
        (json!({"stop": ["end", "符", "zz"]}), "stop"),
        (json!({"stop": "文", "include_stop_str_in_output": true}), "include"),
        (json!({"max_tokens": 7}), "cut"),
        (json!({"max_tokens": 200, "ignore_eos": true, "stream_interval": 5}), "long"),
    ];
    for prompt in ["plain", "中文字符", "emoji 😀👨‍👩‍👧 end", "\"quotes\" and \\ and \n", "Ωé\u{1}"]
    {
        for (extra, what) in &variants {
            let body = merged(json!({"prompt": prompt, "max_tokens": 64}), extra);
            let whole = server.complete(body.clone()).await.json();
            let events = server.complete(merged(body, &json!({"stream": true}))).await.events();
            let text = texts(&events);
            assert_eq!(text, whole["choices"][0]["text"].as_str().unwrap(), "{prompt:?} {what}");
            let cut = ["cut", "long"].contains(what);
            assert!(cut || !text.contains('\u{FFFD}'), "{prompt:?} {what}: {text:?}");
            let end = &events.last().unwrap()["choices"][0];
            for field in ["finish_reason", "stop_reason"] {
                assert_eq!(end[field], whole["choices"][0][field], "{prompt:?} {what} {field}");
            }
        }
    }
}

#[tokio::test]
async fn stop_strings_and_ids_are_reported() {
    let server = TestServer::new().start();
    let cases = [
        (json!({"stop": ["lo"]}), "Hel", "stop", json!("lo"), 6),
        (json!({"stop": ["lo"], "include_stop_str_in_output": true}), "Hello", "stop", json!("lo"), 6),
        (json!({"stop_token_ids": [108]}), "He", "stop", json!(108), 4),
        (json!({"stop_token_ids": [108], "include_stop_str_in_output": true}), "Hel", "stop", json!(108), 4),
        (json!({"max_tokens": 3}), "He", "length", Value::Null, 3),
        (json!({"stop": ["H", "o"], "min_tokens": 3}), "Hell", "stop", json!("o"), 6),
        (json!({"stop": "unseen"}), "Hello", "stop", Value::Null, 7),
        (json!({"stop": "o, or not"}), "Hello", "stop", Value::Null, 7),
    ];
    for (extra, text, finish, reason, tokens) in cases {
        let json = server.complete(merged(json!({"prompt": "Hello"}), &extra)).await.json();
        let choice = &json["choices"][0];
        assert_eq!(choice["text"], text, "{extra}");
        assert_eq!(choice["finish_reason"], finish, "{extra}");
        assert_eq!(choice["stop_reason"], reason, "{extra}");
        assert_eq!(json["usage"]["completion_tokens"], tokens, "{extra}");
    }
}

#[tokio::test]
async fn prompts_come_in_four_forms() {
    let server = TestServer::new().start();
    let cases = [
        (json!("ab"), vec!["ab"], 3),
        (json!(["ab", "c"]), vec!["ab", "c"], 5),
        (json!([97, 98]), vec!["ab"], 2),
        (json!([[97, 98], [99]]), vec!["ab", "c"], 3),
    ];
    for (prompt, texts, prompt_tokens) in cases {
        let json = server.complete(json!({"prompt": prompt})).await.json();
        let choices = json["choices"].as_array().unwrap();
        let got: Vec<&str> = choices.iter().map(|c| c["text"].as_str().unwrap()).collect();
        assert_eq!(got, texts);
        assert_eq!(json["usage"]["prompt_tokens"], prompt_tokens);
    }
}

#[tokio::test]
async fn n_answers_are_numbered_over_all_prompts() {
    let server = TestServer::new().start();
    let events = server.complete(json!({"prompt": ["ab", "c"], "n": 3, "stream": true})).await.events();
    let mut texts = vec![String::new(); 6];
    for event in &events {
        let choice = &event["choices"][0];
        texts[choice["index"].as_u64().unwrap() as usize] += choice["text"].as_str().unwrap();
    }
    assert_eq!(texts, ["ab", "ab", "ab", "c", "c", "c"]);

    let json = server.complete(json!({"prompt": "ab", "n": 2, "best_of": 4})).await.json();
    assert_eq!(json["choices"].as_array().unwrap().len(), 2);
    assert_eq!(json["choices"][1]["index"], 1);
    assert_eq!(json["choices"][0]["logprobs"], Value::Null);
    assert_eq!(json["usage"]["completion_tokens"], 16);
}

#[tokio::test]
async fn echo_returns_the_prompt() {
    let server = TestServer::new().start();
    let json = server.complete(json!({"prompt": "ab", "echo": true})).await.json();
    assert_eq!(json["choices"][0]["text"], "abab");
    let json = server.complete(json!({"prompt": [97, 98], "echo": true, "max_tokens": 0})).await.json();
    assert_eq!(json["choices"][0]["text"], "ab");
    assert_eq!(json["usage"]["completion_tokens"], 0);

    let body = json!({"prompt": [97, 98], "echo": true, "logprobs": 2, "max_tokens": 1});
    let whole = server.complete(body.clone()).await.json();
    let logprobs = &whole["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["a", "b", "a"]));
    assert_eq!(logprobs["text_offset"], json!([0, 1, 2]));
    assert_eq!(logprobs["token_logprobs"], json!([null, -0.25, -0.25]));
    assert_eq!(logprobs["top_logprobs"][0], Value::Null);
    assert_eq!(logprobs["top_logprobs"][1], json!({"b": -0.25, "c": -0.5}));
    assert_eq!(whole["choices"][0]["prompt_logprobs"], Value::Null);
    let events = server.complete(merged(body, &json!({"stream": true}))).await.events();
    assert_eq!(events[0]["choices"][0]["text"], "aba");
    assert_eq!(&events[0]["choices"][0]["logprobs"], logprobs);
}

#[tokio::test]
async fn logprobs_ids_and_prompt_logprobs_are_returned() {
    let server = TestServer::new().start();
    let body = json!({
        "prompt": [97, 98], "logprobs": 1, "prompt_logprobs": 1, "return_token_ids": true, "max_tokens": 2,
        "return_tokens_as_token_ids": true
    });
    let json = server.complete(body).await.json();
    let choice = &json["choices"][0];
    assert_eq!(choice["logprobs"]["tokens"], json!(["token_id:97", "token_id:98"]));
    assert_eq!(choice["token_ids"], json!([97, 98]));
    assert_eq!(choice["prompt_token_ids"], json!([97, 98]));
    let expected = json!([null, {"98": {"logprob": -0.25, "rank": 1, "decoded_token": "token_id:98"}}]);
    assert_eq!(choice["prompt_logprobs"], expected);
}

#[tokio::test]
async fn usage_options_hold() {
    let mut options = HttpOptions::default();
    options.frontend.enable_force_include_usage = true;
    options.frontend.enable_prompt_tokens_details = true;
    let server = TestServer::with(MockConfig::new(64), options).start();
    let events = server.complete(json!({"prompt": "ab", "stream": true})).await.events();
    let usage = &events.last().unwrap()["usage"];
    assert_eq!(usage["prompt_tokens_details"], json!({"cached_tokens": 0}));

    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let body = json!({"prompt": "abc", "stream": true, "stream_options": options});
    for event in server.complete(body).await.events() {
        assert_eq!(event["usage"]["prompt_tokens"], 4, "{event}");
        assert!(event["usage"]["completion_tokens"].as_u64().unwrap() >= 1, "{event}");
    }
}

#[tokio::test]
async fn truncation_keeps_the_asked_side() {
    let server = TestServer::new().start();
    let ask = |extra: Value| {
        server.complete(merged(json!({"prompt": [97, 98, 99, 100], "return_token_ids": true}), &extra))
    };
    let ids = |json: Value| json["choices"][0]["prompt_token_ids"].clone();
    assert_eq!(ids(ask(json!({"truncate_prompt_tokens": 2})).await.json()), json!([99, 100]));
    let right = json!({"truncate_prompt_tokens": 2, "truncation_side": "right"});
    assert_eq!(ids(ask(right).await.json()), json!([97, 98]));
    assert_eq!(ids(ask(json!({"truncate_prompt_tokens": -1})).await.json()), json!([97, 98, 99, 100]));
    let error = ask(json!({"truncate_prompt_tokens": 1000})).await;
    check_error(&error, 400, "BadRequestError", Some("truncate_prompt_tokens"));
}

#[tokio::test]
async fn answers_are_clamped_to_the_context() {
    let server = TestServer::new().start();
    let body = json!({"prompt": vec![97; 250], "max_tokens": 100, "ignore_eos": true});
    let json = server.complete(body).await.json();
    assert_eq!(json["usage"]["completion_tokens"], 6);
    assert_eq!(json["choices"][0]["finish_reason"], "length");
    let body = json!({"prompt": vec![97; 16], "max_tokens": null, "ignore_eos": true});
    assert_eq!(server.complete(body).await.json()["usage"]["completion_tokens"], 240);
}
