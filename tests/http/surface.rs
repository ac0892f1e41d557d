//! Everything but the two endpoints that generate.

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};
use server::cli::{FrontendArgs, Secret};
use server::client::mock::MockConfig;
use server::http::HttpOptions;

use crate::harness::{Answer, TestServer, check_error};

fn with_frontend(frontend: FrontendArgs) -> TestServer {
    TestServer::with(MockConfig::new(64), HttpOptions { frontend, ..HttpOptions::default() }).start()
}

#[tokio::test]
async fn probes_answer() {
    let server = TestServer::new().start();
    for path in ["/health", "/ready", "/ping"] {
        let answer = server.get(path).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, ""), "{path}");
    }
    assert_eq!(server.post_bytes("/ping", "").await.status, 200);
    assert_eq!(server.get("/version").await.json(), json!({"version": env!("CARGO_PKG_VERSION")}));
    assert_eq!(server.get("/load").await.json(), json!({"server_load": 0}));
}

#[tokio::test]
async fn models_are_listed() {
    let server = TestServer::new().start();
    let json = server.get("/v1/models").await.json();
    assert_eq!(json["object"], "list");
    let ids: Vec<&str> = json["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["mock", "mock-alias"]);
    let card = &json["data"][0];
    assert_eq!(card["max_model_len"], 256);
    assert_eq!(card["object"], "model");
    assert_eq!(card["permission"][0]["object"], "model_permission");
    assert_eq!(server.get("/v1/models/mock").await.json(), *card);
    check_error(&server.get("/v1/models/a/b").await, 404, "NotFoundError", Some("model"));
}

#[tokio::test]
async fn text_and_ids_are_converted() {
    let server = TestServer::new().start();
    let json = server.post("/tokenize", &json!({"prompt": "Hé", "return_token_strs": true})).await.json();
    assert_eq!(json["tokens"], json!([256, 72, 195, 169]));
    assert_eq!(json["count"], 4);
    assert_eq!(json["max_model_len"], 256);
    assert_eq!(json["token_strs"][0], "<s>");
    let json = server.post("/tokenize", &json!({"prompt": "Hi", "add_special_tokens": false})).await.json();
    assert_eq!(json["tokens"], json!([72, 105]));
    assert_eq!(json["token_strs"], Value::Null);
    let chat = json!({"messages": [{"role": "user", "content": "Hi"}], "add_generation_prompt": false});
    assert_eq!(server.post("/tokenize", &chat).await.json()["count"], 8);
    let json = server.post("/detokenize", &json!({"tokens": [256, 72, 195, 169]})).await.json();
    assert_eq!(json, json!({"prompt": "<s>Hé"}));
    let long = "long text ".repeat(2000);
    let tokens = server.post("/tokenize", &json!({"prompt": long})).await.json()["tokens"].clone();
    let json = server.post("/detokenize", &json!({"tokens": tokens})).await.json();
    assert_eq!(json["prompt"], format!("<s>{long}"));

    check_error(&server.post("/tokenize", &json!({})).await, 400, "Bad Request", Some("body.prompt"));
    check_error(&server.post("/detokenize", &json!({})).await, 400, "Bad Request", Some("body.tokens"));
    let outside = server.post("/detokenize", &json!({"tokens": [999]})).await;
    check_error(&outside, 400, "BadRequestError", Some("tokens"));
    let other = server.post("/tokenize", &json!({"prompt": "x", "model": "other"})).await;
    check_error(&other, 404, "NotFoundError", Some("model"));
}

#[tokio::test]
async fn keys_guard_what_takes_a_prompt() {
    let server = with_frontend(FrontendArgs { api_key: vec![Secret::new("k1")], ..FrontendArgs::default() });
    for path in ["/health", "/ready", "/ping", "/version", "/metrics"] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
    for path in ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"] {
        let answer = server.post(path, &json!({"prompt": "x"})).await;
        assert_eq!((answer.status, answer.body.as_str()), (401, r#"{"error":"Unauthorized"}"#), "{path}");
    }
    let request = Request::post("/v1/completions")
        .header("content-type", "application/json")
        .header("authorization", "Bearer k1")
        .body(Body::from(r#"{"prompt": "x"}"#))
        .unwrap();
    assert_eq!(server.send(request).await.status, 200);
}

#[tokio::test]
async fn request_ids_come_and_go() {
    async fn send(server: &TestServer) -> Answer {
        let request = Request::post("/v1/completions")
            .header("content-type", "application/json")
            .header("x-request-id", "my-id")
            .body(Body::from(r#"{"prompt": "x", "request_id": "other"}"#))
            .unwrap();
        server.send(request).await
    }
    let silent = TestServer::new().start();
    let answer = send(&silent).await;
    assert_eq!(answer.json()["id"], "cmpl-my-id");
    assert!(answer.headers.get("x-request-id").is_none());
    let server = with_frontend(FrontendArgs { enable_request_id_headers: true, ..FrontendArgs::default() });
    assert_eq!(send(&server).await.headers["x-request-id"], "my-id");
    assert_eq!(server.get("/health").await.headers["x-request-id"].len(), 32);
    let one = server.complete(json!({"prompt": "x"})).await.json();
    let two = server.complete(json!({"prompt": "x"})).await.json();
    assert_ne!(one["id"], two["id"]);
}

#[tokio::test]
async fn cross_origin_answers_follow_the_flags() {
    async fn ask(server: TestServer) -> Option<String> {
        let request = Request::get("/v1/models").header("origin", "http://page").body(Body::empty()).unwrap();
        let answer = server.send(request).await;
        answer.headers.get("access-control-allow-origin").map(|v| v.to_str().unwrap().to_string())
    }
    assert_eq!(ask(TestServer::new().start()).await, None);
    let frontend = FrontendArgs { allowed_origins: vec!["http://page".into()], ..FrontendArgs::default() };
    assert_eq!(ask(with_frontend(frontend)).await.as_deref(), Some("http://page"));
}

#[tokio::test]
async fn a_root_path_is_stripped() {
    let server = with_frontend(FrontendArgs { root_path: "/llm".into(), ..FrontendArgs::default() });
    assert_eq!(server.get("/llm/v1/models").await.status, 200);
    assert_eq!(server.get("/v1/models").await.status, 200);
    assert_eq!(server.get("/llmv1/models").await.status, 404);
}

#[tokio::test]
async fn the_document_is_true_to_the_routes() {
    let server = TestServer::new().start();
    let document = server.get("/openapi.json").await.json();
    assert_eq!(document["openapi"], "3.1.0");
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let path = path.replace("{name}", "mock");
            let request = Request::builder().method(method.to_uppercase().as_str()).uri(&path);
            let status = server.send(request.body(Body::empty()).unwrap()).await.status;
            assert!(status != 404 && status != 405, "{method} {path}: {status}");
        }
    }
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let text = document.to_string();
    for reference in text.split("#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(schemas.contains_key(name), "{name}");
    }
    let hidden = with_frontend(FrontendArgs { disable_openapi: true, ..FrontendArgs::default() });
    assert_eq!(hidden.get("/openapi.json").await.status, 404);
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let server = TestServer::new().start();
    for _ in 0..3 {
        server.complete(json!({"prompt": "abc", "n": 2, "max_tokens": 8})).await;
    }
    server.complete(json!({"prompt": "abc", "max_tokens": 2, "stream": true})).await;
    server.complete(json!({"prompt": "abc", "stop": "b"})).await;
    server.complete(json!({"prompt": "abc", "temperature": 9})).await;
    let text = server.get("/metrics").await.body;
    let value = |series: String| -> f64 {
        let line = text.lines().find(|l| l.strip_prefix(&series).is_some_and(|r| r.starts_with(' ')));
        line.unwrap_or_else(|| panic!("{series} in\n{text}")).rsplit(' ').next().unwrap().parse().unwrap()
    };
    let base = "engine=\"0\",model_name=\"mock\"";
    assert_eq!(value(format!("vllm:prompt_tokens_total{{{base}}}")), 32.0);
    // Six echoes of four tokens with an end mark, two tokens, and three up to the stop string; the engine may
    // have been ahead of that one.
    let generated = value(format!("vllm:generation_tokens_total{{{base}}}"));
    assert!((35.0..=37.0).contains(&generated), "{generated}");
    let success =
        |reason: &str| value(format!("vllm:request_success_total{{{base},finished_reason=\"{reason}\"}}"));
    assert_eq!(
        (success("stop"), success("length"), success("abort"), success("error")),
        (7.0, 1.0, 0.0, 0.0)
    );
    assert_eq!(value(format!("vllm:request_params_n_count{{{base}}}")), 5.0);
    assert_eq!(value(format!("vllm:request_params_n_sum{{{base}}}")), 8.0);
    assert_eq!(value(format!("vllm:time_to_first_token_seconds_count{{{base}}}")), 8.0);
    assert_eq!(value(format!("vllm:e2e_request_latency_seconds_bucket{{{base},le=\"+Inf\"}}")), 8.0);
    let http = |class: &str| {
        value(format!(
            "http_requests_total{{handler=\"/v1/completions\",method=\"POST\",status=\"{class}\"}}"
        ))
    };
    assert_eq!((http("2xx"), http("4xx")), (5.0, 1.0));
    assert_eq!(value(format!("vllm:num_requests_running{{{base}}}")), 0.0);
}
