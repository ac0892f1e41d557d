//! Templates, and what answers carry.

use serde_json::{Value, json};

use crate::effects;
use crate::harness::{complete, post};
use crate::process::Server;

/// What the template makes of a body.
fn rendered(server: &Server, extra: &Value) -> String {
    let mut body = json!({"messages": [{"role": "user", "content": "abc"}], "return_token_strs": true});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    let reply = post(server, "/tokenize", &body).json();
    let tokens = reply["token_strs"].as_array().unwrap_or_else(|| panic!("{reply}"));
    tokens.iter().map(|token| token.as_str().unwrap()).collect()
}

fn chat(server: &Server, extra: &Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    post(server, "/v1/chat/completions", &body).json()
}

fn tool() -> Value {
    json!({"type": "function", "function": {"name": "f", "parameters": {}}})
}

effects! {
    "chat-template" fn template() {
        let server = Server::start(&["--chat-template", "[{{ messages[0].content }}]"]);
        assert_eq!(rendered(&server, &json!({})), "[abc]");
    }
    "chat-template-content-format" fn content_format() {
        let template = ["--chat-template", "{{ messages[0].content is string }}"];
        for (format, wanted) in [("auto", "True"), ("string", "True"), ("openai", "False")] {
            let words = [&template[..], &["--chat-template-content-format", format]].concat();
            let parts = json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]});
            assert_eq!(rendered(&Server::start(&words), &parts), wanted, "{format}");
        }
    }
    "default-chat-template-kwargs" fn template_kwargs() {
        let words = ["--chat-template", "{{ word }}", "--default-chat-template-kwargs", "{\"word\": \"xyz\"}"];
        let server = Server::start(&words);
        assert_eq!(rendered(&server, &json!({})), "xyz");
        assert_eq!(rendered(&server, &json!({"chat_template_kwargs": {"word": "own"}})), "own");
    }
    "trust-request-chat-template" fn trusted_template() {
        let own = json!({"chat_template": "own:{{ messages[0].content }}"});
        for (words, wanted) in [(&["--trust-request-chat-template"][..], "own:abc"), (&[], "served")] {
            let server = Server::start(&[&["--chat-template", "{{ 'served' }}"], words].concat());
            assert_eq!(rendered(&server, &own), wanted);
        }
    }
    "response-role" fn role() {
        let server = Server::start(&["--response-role", "oracle"]);
        assert_eq!(chat(&server, &json!({}))["choices"][0]["message"]["role"], "oracle");
        let body = json!({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3, "stream": true});
        let first = &post(&server, "/v1/chat/completions", &body).events()[0];
        assert_eq!(first["choices"][0]["delta"]["role"], "oracle");
    }
    "return-tokens-as-token-ids" fn token_ids() {
        let body = json!({"prompt": "Once", "max_tokens": 1, "logprobs": 1, "temperature": 0});
        for (words, as_ids) in [(&["--return-tokens-as-token-ids"][..], true), (&[], false)] {
            let reply = complete(&Server::start(words), &body).json();
            let token = reply["choices"][0]["logprobs"]["tokens"][0].as_str().unwrap();
            assert_eq!(token.starts_with("token_id:"), as_ids, "{token}");
        }
    }
    "enable-prompt-tokens-details" fn prompt_details() {
        let server = Server::start(&["--enable-prompt-tokens-details"]);
        assert_eq!(chat(&server, &json!({}))["usage"]["prompt_tokens_details"], json!({"cached_tokens": 0}));
        let server = Server::start(&[]);
        assert_eq!(chat(&server, &json!({}))["usage"]["prompt_tokens_details"], Value::Null);
    }
    "enable-force-include-usage" fn forced_usage() {
        let body = json!({"prompt": "Once", "max_tokens": 2, "stream": true});
        for (words, wanted) in [(&["--enable-force-include-usage"][..], true), (&[], false)] {
            let events = complete(&Server::start(words), &body).events();
            assert_eq!(events.last().unwrap().get("usage").is_some(), wanted);
        }
    }
    "enable-per-request-metrics" fn request_metrics() {
        let server = Server::start(&["--enable-per-request-metrics"]);
        let options = json!({"include_usage": true});
        let body = json!({"prompt": "Once", "max_tokens": 4, "stream": true, "stream_options": options});
        let streamed = complete(&server, &body).events();
        assert!(streamed[..streamed.len() - 1].iter().all(|event| event.get("metrics").is_none()));
        let whole = chat(&server, &json!({"ignore_eos": true, "max_tokens": 4}));
        // A stop string ends an answer from the server's side.
        let stopped = complete(&server, &json!({"prompt": "Once upon", "temperature": 0, "stop": "time"})).json();
        for metrics in [&whole["metrics"], &streamed.last().unwrap()["metrics"], &stopped["metrics"]] {
            for name in ["time_to_first_token_ms", "generation_time_ms", "mean_itl_ms", "tokens_per_second"] {
                assert!(metrics[name].as_f64().is_some_and(|x| x > 0.0), "{name} in {metrics}");
            }
            assert!(metrics["queue_time_ms"].as_f64().is_some_and(|x| x >= 0.0), "{metrics}");
        }
        assert_eq!(chat(&server, &json!({"n": 2, "temperature": 1}))["metrics"], Value::Null);
        assert_eq!(chat(&Server::start(&[]), &json!({}))["metrics"], Value::Null);
    }
    "exclude-tools-when-tool-choice-none" fn excluded_tools() {
        let template = ["--chat-template", "{% if tools %}tools{% else %}none{% endif %}"];
        let none = json!({"tools": [tool()], "tool_choice": "none"});
        for (words, wanted) in [(&["--exclude-tools-when-tool-choice-none"][..], "none"), (&[], "tools")] {
            let server = Server::start(&[&template[..], words].concat());
            assert_eq!(rendered(&server, &none), wanted);
            assert_eq!(rendered(&server, &json!({"tools": [tool()]})), "tools");
        }
    }
}
