//! Errors that are not about one parameter.

use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use serde_json::json;
use server::client::mock::MockConfig;
use server::http::HttpOptions;

use crate::harness::{TestServer, check_error, raw, until};

/// An engine that takes requests and never runs one.
fn stuck() -> MockConfig {
    MockConfig { max_num_seqs: 0, ..MockConfig::new(64) }
}

#[tokio::test]
async fn bodies_that_are_no_json_are_refused() {
    let server = TestServer::new().start();
    for path in ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"] {
        for body in [&b"{"[..], b"", b"[]", b"{\"prompt\": NaN}", b"\xff\xfe", b"{\"prompt\": \"\xc3\"}"] {
            let answer = server.post_bytes(path, body.to_vec()).await;
            assert_eq!(answer.status, 400, "{path} {body:?}");
            assert_eq!(answer.json()["error"]["type"], "Bad Request");
        }
        let no_type = Request::post(path).body(Body::from("{}")).unwrap();
        check_error(&server.send(no_type).await, 400, "Bad Request", None);
        let text = Request::post(path).header("content-type", "text/plain").body(Body::from("{}")).unwrap();
        check_error(&server.send(text).await, 400, "Bad Request", None);
    }
}

#[tokio::test]
async fn too_large_bodies_are_refused() {
    let options = HttpOptions { max_body_bytes: 1000, ..HttpOptions::default() };
    let server = TestServer::with(MockConfig::new(64), options).start();
    let answer = server.complete(json!({"prompt": "x".repeat(2000)})).await;
    check_error(&answer, 413, "Bad Request", None);
}

#[tokio::test]
async fn unknown_names_paths_and_methods() {
    let server = TestServer::new().start();
    let answer = server.complete(json!({"prompt": "x", "model": "other"})).await;
    check_error(&answer, 404, "NotFoundError", Some("model"));
    assert!(answer.body.contains("`other`"));
    let answer = server.chat(json!({"messages": [{"role": "user", "content": "x"}], "model": "other"})).await;
    check_error(&answer, 404, "NotFoundError", Some("model"));
    let answer = server.get("/nowhere").await;
    assert_eq!((answer.status, answer.body.as_str()), (404, r#"{"detail":"Not Found"}"#));
    let answer = server.get("/v1/completions").await;
    assert_eq!((answer.status, answer.body.as_str()), (405, r#"{"detail":"Method Not Allowed"}"#));
}

#[tokio::test]
async fn a_full_queue_answers_at_once() {
    let server =
        TestServer::with(MockConfig { max_num_queued_reqs: 2, ..stuck() }, HttpOptions::default()).start();
    let waiting = server.complete(json!({"prompt": ["a", "b"]}));
    let refused = async {
        until("queueing", || server.engine.open_requests() == 2).await;
        let answer = server.complete(json!({"prompt": "c"})).await;
        check_error(&answer, 503, "Service Unavailable", None);
        assert_eq!(answer.headers["retry-after"], "1");
        assert!(answer.body.contains("--max-num-queued-reqs"));
        let metrics = server.get("/metrics").await.body;
        let labels = "engine=\"0\",model_name=\"mock\",reason=\"max_num_queued_reqs\"";
        assert!(metrics.contains(&format!("vllm:admission_rejections_total{{{labels}}} 1.0")), "{metrics}");
    };
    tokio::select! { _ = waiting => panic!("nothing runs"), () = refused => {} }

    let server =
        TestServer::with(MockConfig { max_num_queued_tokens: 5, ..stuck() }, HttpOptions::default()).start();
    let answer = server.complete(json!({"prompt": [1, 2, 3, 4, 5, 6]})).await;
    check_error(&answer, 503, "Service Unavailable", None);
    assert!(answer.body.contains("--max-num-queued-tokens"));
    assert_eq!(server.state.fanout.open_rows(), 0);
}

#[tokio::test]
async fn what_never_fits_is_refused() {
    let mut config = MockConfig::new(64);
    config.info.kv_cache_tokens = 4;
    let server = TestServer::with(config, HttpOptions::default()).start();
    let answer = server.complete(json!({"prompt": [1, 2, 3, 4, 5]})).await;
    check_error(&answer, 400, "BadRequestError", Some("input_tokens"));
}

#[tokio::test]
async fn a_lost_engine_fails_open_requests_and_health() {
    let server = TestServer::with(stuck(), HttpOptions::default()).start();
    let lose = async {
        until("queueing", || server.engine.open_requests() == 2).await;
        server.engine.lose();
    };
    let whole = server.complete(json!({"prompt": "a"}));
    let stream = server.complete(json!({"prompt": "a", "stream": true}));
    let (whole, stream, ()) = tokio::join!(whole, stream, lose);
    check_error(&whole, 500, "InternalServerError", None);
    let events = stream.events();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["error"]["code"], 500);
    assert_eq!(server.get("/health").await.status, 503);
    check_error(&server.complete(json!({"prompt": "b"})).await, 500, "InternalServerError", None);
}

#[tokio::test]
async fn a_hung_engine_is_unhealthy() {
    let options = HttpOptions { stall_limit: Duration::from_millis(20), ..HttpOptions::default() };
    let server = TestServer::with(MockConfig::new(64), options).start();
    server.engine.hang();
    assert_eq!(server.get("/health").await.status, 200, "idle is healthy");
    let waiting = server.complete(json!({"prompt": "a"}));
    let probe = async {
        loop {
            let answer = server.get("/health").await;
            if answer.status == 503 {
                assert!(answer.body.contains("no step ended"), "{}", answer.body);
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! { _ = waiting => panic!("it hangs"), () = probe => {} }
}

#[tokio::test]
async fn broken_http_is_answered() {
    let server = TestServer::new();
    let (address, _signal, _served) = server.listen().await;
    let many: String = (0..300).map(|i| format!("h{i}: x\r\n")).collect();
    let answer = raw(&address, &format!("GET /health HTTP/1.1\r\nhost: x\r\n{many}\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    let answer = raw(&address, "nonsense\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[tokio::test]
async fn a_panic_ends_its_own_request_only() {
    let server = TestServer::with(MockConfig::new(1 << 14), HttpOptions::default()).start();
    // In the handler, on a blocking thread, while gathering, and while streaming.
    for prompt in ["PANIC".to_string(), "PANIC".repeat(2000), "a\u{7}".to_string()] {
        let answer = server.complete(json!({"prompt": prompt})).await;
        check_error(&answer, 500, "InternalServerError", None);
    }
    let events = server.complete(json!({"prompt": "a\u{7}", "stream": true})).await.events();
    assert_eq!(events.last().unwrap()["error"]["code"], 500);
    assert_eq!(server.complete(json!({"prompt": "a"})).await.json()["choices"][0]["text"], "a");
    until("freeing", || server.engine.open_requests() == 0).await;
    assert_eq!((server.state.metrics.in_work(), server.state.fanout.open_rows()), (0, 0));
}
