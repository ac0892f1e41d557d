//! `/v1/chat/completions`: whole and streamed.

use serde_json::{Value, json};
use server::client::mock::MockConfig;
use server::http::HttpOptions;

use crate::harness::{TestServer, check_error, merged};

fn hi() -> Value {
    json!([{"role": "user", "content": "Hi"}])
}

fn text(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

#[tokio::test]
async fn a_whole_answer_has_every_field() {
    let server = TestServer::new().start();
    let mut json =
        server.chat(json!({"messages": hi(), "request_id": "r", "model": "mock-alias"})).await.json();
    json["created"] = json!(0);
    assert_eq!(
        json,
        json!({
            "id": "chatcmpl-r", "object": "chat.completion", "created": 0, "model": "mock",
            "choices": [{
                "index": 0,
                "message": {
                    "role": "assistant", "content": "<user>Hi<assistant>", "refusal": null, "annotations": null,
                    "audio": null, "function_call": null, "reasoning": null
                },
                "logprobs": null, "finish_reason": "stop", "stop_reason": null, "token_ids": null
            }],
            "service_tier": null,
            "system_fingerprint": format!("pallium-{}", env!("CARGO_PKG_VERSION")),
            "usage": {"prompt_tokens": 19, "total_tokens": 39, "completion_tokens": 20, "prompt_tokens_details": null},
            "prompt_logprobs": null, "prompt_token_ids": null, "kv_transfer_params": null, "metrics": null
        })
    );
}

#[tokio::test]
async fn a_stream_begins_with_the_role() {
    let server = TestServer::new().start();
    let body = json!({
        "messages": [{"role": "user", "content": "中😀"}], "stream": true, "n": 2,
        "stream_options": {"include_usage": true}
    });
    let events = server.chat(body).await.events();
    for (i, event) in events[..2].iter().enumerate() {
        let expected = json!([{
            "index": i, "delta": {"role": "assistant", "content": ""}, "logprobs": null, "finish_reason": null
        }]);
        assert_eq!(event["choices"], expected);
        assert_eq!(event["object"], "chat.completion.chunk");
    }
    let mut texts = [String::new(), String::new()];
    let mut ends = 0;
    for event in &events[2..events.len() - 1] {
        let choice = &event["choices"][0];
        texts[choice["index"].as_u64().unwrap() as usize] += choice["delta"]["content"].as_str().unwrap();
        ends += usize::from(choice["finish_reason"] == "stop");
    }
    assert_eq!(texts, ["<user>中😀<assistant>", "<user>中😀<assistant>"]);
    assert_eq!(ends, 2);
    let usage = events.last().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["prompt_tokens"], 24);
    assert_eq!(usage["usage"]["completion_tokens"], 50);
}

#[tokio::test]
async fn the_template_sees_what_the_request_says() {
    let server = TestServer::new().start();
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {}}});
    let call = json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}});
    let parts =
        json!([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]);
    let open = json!([{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A: "}]);
    let called =
        json!([{"role": "user", "content": "Q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]);
    let cases = [
        (json!({"messages": hi(), "add_generation_prompt": false}), "<user>Hi"),
        (json!({"messages": hi(), "chat_template_kwargs": {"shout": true}}), "<user>Hi!<assistant>"),
        (json!({"messages": hi(), "tools": [tool]}), "<user>Hi[1 tools]<assistant>"),
        (json!({"messages": hi(), "tools": [tool], "tool_choice": "none"}), "<user>Hi[1 tools]<assistant>"),
        (json!({"messages": parts}), "<user>a\nb<assistant>"),
        (json!({"messages": called}), "<user>Q<assistant><assistant>"),
        (json!({"messages": open, "continue_final_message": true}), "<user>Q<assistant>A: "),
        (json!({"messages": hi(), "chat_template": "ignored"}), "<user>Hi<assistant>"),
        (json!({"messages": hi(), "max_completion_tokens": 3, "max_tokens": 9}), "<us"),
        (json!({"messages": hi(), "unknown_field": [1, 2], "guided_json": {}}), "<user>Hi<assistant>"),
        (json!({"messages": hi(), "response_format": {"type": "text"}}), "<user>Hi<assistant>"),
    ];
    for (body, expected) in cases {
        let answer = server.chat(body.clone()).await;
        assert_eq!(answer.status, 200, "{body}: {}", answer.body);
        assert_eq!(text(&answer.json()), expected, "{body}");
    }
}

#[tokio::test]
async fn tools_are_chosen_by_nobody_without_a_parser() {
    let server = TestServer::new().start();
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {}}});
    let ask = |choice: Value| server.chat(json!({"messages": hi(), "tools": [tool], "tool_choice": choice}));
    let answer = ask(json!("auto")).await;
    check_error(&answer, 400, "BadRequestError", None);
    assert!(answer.body.contains("--tool-call-parser"), "{}", answer.body);
    check_error(&ask(json!("required")).await, 400, "Bad Request", Some("body.tool_choice"));
    assert_eq!(ask(json!("none")).await.status, 200);
}

/// As in vLLM, what an empty conversation means is the template's affair: many refuse it, or look at its first message.
#[tokio::test]
async fn an_empty_conversation_is_for_the_template_to_refuse() {
    let mut options = HttpOptions::default();
    options.frontend.trust_request_chat_template = true;
    let server = TestServer::with(MockConfig::new(256), options).start();
    let ask =
        |template: &str| server.chat(json!({"messages": [], "chat_template": template, "max_tokens": 2}));
    let looking = ask("{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}<a>").await;
    check_error(&looking, 400, "BadRequestError", None);
    let refusing = ask("{% if not messages %}{{ raise_exception('say something') }}{% endif %}").await;
    check_error(&refusing, 400, "BadRequestError", None);
    assert!(refusing.body.contains("say something"), "{}", refusing.body);
    assert_eq!(text(&ask("<a>{% for m in messages %}{{ m.content }}{% endfor %}").await.json()), "<a");
    let nothing = ask("{% for m in messages %}{{ m.content }}{% endfor %}").await;
    check_error(&nothing, 400, "BadRequestError", Some("prompt"));
}

#[tokio::test]
async fn too_long_a_conversation_is_refused_by_its_characters() {
    let server = TestServer::new().start();
    let long = |text: String| json!({"messages": [{"role": "user", "content": text}]});
    check_error(&server.chat(long("PANIC".repeat(60))).await, 400, "BadRequestError", Some("input_text"));
    let cut = merged(long("a".repeat(600)), &json!({"truncate_prompt_tokens": 9, "max_tokens": 1}));
    assert_eq!(server.chat(cut).await.status, 200);
    // Counting tokens of a long text is no crime.
    let counted = server.post("/tokenize", &json!({"prompt": "a".repeat(600)})).await;
    assert_eq!(counted.json()["count"], 601);
}

#[tokio::test]
async fn echo_repeats_the_open_message() {
    let server = TestServer::new().start();
    let messages = json!([{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A: "}]);
    let body = json!({"messages": messages, "continue_final_message": true, "echo": true, "max_tokens": 2});
    assert_eq!(text(&server.chat(body.clone()).await.json()), "A: <u");
    let events = server.chat(merged(body, &json!({"stream": true}))).await.events();
    let streamed: String =
        events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(streamed, "A: <u");
}

#[tokio::test]
async fn logprobs_have_bytes_and_candidates() {
    let server = TestServer::new().start();
    let body = json!({"messages": hi(), "logprobs": true, "top_logprobs": 2, "max_tokens": 1});
    let json = server.chat(body.clone()).await.json();
    let expected = json!([{
        "token": "<", "logprob": -0.25, "bytes": [60],
        "top_logprobs": [
            {"token": "<", "logprob": -0.25, "bytes": [60]}, {"token": "=", "logprob": -0.5, "bytes": [61]}
        ]
    }]);
    assert_eq!(json["choices"][0]["logprobs"]["content"], expected);
    let events = server.chat(merged(body, &json!({"stream": true}))).await.events();
    assert_eq!(events[1]["choices"][0]["logprobs"]["content"], expected);
    let plain = server.chat(json!({"messages": hi(), "logprobs": true, "max_tokens": 1})).await.json();
    assert_eq!(plain["choices"][0]["logprobs"]["content"][0]["top_logprobs"], json!([]));
    let prompt = server.chat(json!({"messages": hi(), "prompt_logprobs": 0, "max_tokens": 1})).await.json();
    assert_eq!(prompt["prompt_logprobs"].as_array().unwrap().len(), 19);
}

/// Templates that would run for ever or take all memory are the request's own fault here, and end with one error.
#[tokio::test]
async fn a_hostile_template_ends_with_one_clear_error() {
    let mut options = HttpOptions::default();
    options.frontend.trust_request_chat_template = true;
    let server = TestServer::with(MockConfig::new(256), options).start();
    let twice =
        "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}";
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
    for (template, wanted) in
        [(twice, "makes too much text"), (endless, "it loops too long"), ("{{ 1 + }}", "line 1")]
    {
        let answer = server.chat(json!({"messages": hi(), "chat_template": template})).await;
        check_error(&answer, 400, "BadRequestError", None);
        assert!(answer.body.contains(wanted), "{}", answer.body);
    }
    assert_eq!(server.chat(json!({"messages": hi(), "max_tokens": 1})).await.status, 200);
}

#[tokio::test]
async fn wrong_conversations_are_named() {
    let server = TestServer::new().start();
    let tool = json!({"type": "function", "function": {"name": "f"}});
    let unknown = json!({"function": {"name": "g"}});
    let broken = json!([{"role": "assistant", "tool_calls": [{"function": {"arguments": "{"}}]}]);
    let cases = [
        (json!({}), "body.messages"),
        (json!({"messages": "hi"}), "body.messages"),
        (json!({"messages": [1]}), "body.messages.0"),
        (json!({"messages": [{"content": "x"}]}), "body.messages.0.role"),
        (json!({"messages": [{"role": "user", "content": 5}]}), "body.messages.0.content"),
        (json!({"messages": broken}), "body.messages.0.tool_calls"),
        (json!({"messages": hi(), "top_logprobs": 2}), "body.top_logprobs"),
        (json!({"messages": hi(), "tools": []}), "body.tools"),
        (json!({"messages": hi(), "tools": [{"type": "function"}]}), "body.tools"),
        (json!({"messages": hi(), "tool_choice": "auto"}), "body.tool_choice"),
        (json!({"messages": hi(), "tools": [tool], "tool_choice": "required"}), "body.tool_choice"),
        (json!({"messages": hi(), "tools": [tool], "tool_choice": tool}), "body.tool_choice"),
        (json!({"messages": hi(), "tools": [tool], "tool_choice": unknown}), "body.tool_choice"),
        (
            json!({"messages": hi(), "continue_final_message": true, "add_generation_prompt": true}),
            "body.continue_final_message",
        ),
        (json!({"messages": hi(), "response_format": {"type": "json_object"}}), "body.response_format"),
    ];
    for (body, param) in cases {
        check_error(&server.chat(body).await, 400, "Bad Request", Some(param));
    }
    let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]);
    check_error(&server.chat(json!({"messages": image})).await, 400, "BadRequestError", None);
}
