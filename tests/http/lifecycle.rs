//! Clients that go away, sequences that end once, and the server's own end.

use std::time::Duration;

use engine_core::engine::types::{EngineFailure, FinishReason};
use serde_json::{Value, json};
use server::client::mock::MockConfig;
use server::fanout::{Fanout, RowSpec, Update, Wake};
use server::http::{Ended, HttpOptions, Phase};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{TestServer, raw, raw_post, until};

/// A model that would go on for hours.
fn endless() -> MockConfig {
    let mut config = MockConfig::new(1 << 24);
    config.info.kv_cache_tokens = 1 << 40;
    config.step_time = Duration::from_millis(1);
    config
}

fn endless_body(stream: bool) -> Value {
    json!({"prompt": "abc", "max_tokens": 1 << 23, "ignore_eos": true, "stream": stream})
}

fn drain_limit(seconds: f64) -> HttpOptions {
    let mut options = HttpOptions::default();
    options.frontend.shutdown_timeout_s = seconds;
    options
}

#[tokio::test]
async fn a_client_that_goes_away_frees_its_rows() {
    for stream in [true, false] {
        let server = TestServer::with(endless(), HttpOptions::default());
        let (address, _signal, _served) = server.listen().await;
        let mut client = TcpStream::connect(&address).await.unwrap();
        client.write_all(raw_post("/v1/completions", &endless_body(stream)).as_bytes()).await.unwrap();
        until("running", || server.engine.open_requests() == 1).await;
        if stream {
            let mut some = [0; 512];
            assert!(client.read(&mut some).await.unwrap() > 0);
        }
        drop(client);
        until("freeing", || server.engine.open_requests() == 0).await;
        assert_eq!(server.engine.aborted(), 1, "stream: {stream}");
        until("closing", || server.state.metrics.in_work() == 0).await;
        assert_eq!(server.state.fanout.open_rows(), 0);
    }
}

#[tokio::test]
async fn a_stop_string_frees_the_row() {
    let server = TestServer::with(endless(), HttpOptions::default()).start();
    let body = json!({"prompt": "abc", "max_tokens": 1 << 23, "ignore_eos": true, "stop": "ca"});
    assert_eq!(server.complete(body).await.json()["choices"][0]["text"], "ab");
    until("freeing", || server.engine.open_requests() == 0).await;
    assert_eq!(server.state.fanout.open_rows(), 0);
}

#[tokio::test]
async fn connections_are_kept_alive() {
    let server = TestServer::new();
    let (address, _signal, _served) = server.listen().await;
    let mut client = TcpStream::connect(&address).await.unwrap();
    for stream in [false, true, false] {
        let body = json!({"prompt": "abc", "stream": stream});
        client.write_all(raw_post("/v1/completions", &body).as_bytes()).await.unwrap();
        let mut answer = String::new();
        let mut some = [0; 4096];
        let end = if stream { "\r\n0\r\n\r\n" } else { "}" };
        while !answer.ends_with(end) {
            let count = client.read(&mut some).await.unwrap();
            assert!(count > 0, "closed after {answer}");
            answer.push_str(std::str::from_utf8(&some[..count]).unwrap());
        }
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn silent_streams_are_kept_alive() {
    let config = MockConfig { max_num_seqs: 0, ..MockConfig::new(64) };
    let mut options = HttpOptions::default();
    options.frontend.sse_keep_alive_interval_s = 0.005;
    let server = TestServer::with(config, options);
    let (address, _signal, _served) = server.listen().await;
    let mut client = TcpStream::connect(&address).await.unwrap();
    let body = json!({"prompt": "abc", "stream": true});
    client.write_all(raw_post("/v1/completions", &body).as_bytes()).await.unwrap();
    let mut answer = String::new();
    let mut some = [0; 4096];
    while answer.matches(": keep-alive\n\n").count() < 3 {
        let count = client.read(&mut some).await.unwrap();
        assert!(count > 0, "closed after {answer}");
        answer.push_str(std::str::from_utf8(&some[..count]).unwrap());
    }
}

#[tokio::test]
async fn open_answers_finish_before_the_drain_limit() {
    let config = MockConfig { step_time: Duration::from_millis(2), ..MockConfig::new(4096) };
    let server = TestServer::with(config, drain_limit(60.0));
    let (address, signal, served) = server.listen().await;
    let body = json!({"prompt": "abc", "max_tokens": 300, "ignore_eos": true, "stream": true});
    let request = raw_post("/v1/completions", &body);
    let open = raw(&address, &request);
    let late = async {
        until("running", || server.engine.open_requests() == 1).await;
        signal.send(()).await.unwrap();
        until("draining", || server.state.phase() == Phase::Draining).await;
        let probe = async |path: &str| {
            raw(&address, &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await
        };
        assert!(probe("/ready").await.starts_with("HTTP/1.1 503 "));
        assert!(probe("/health").await.starts_with("HTTP/1.1 200 "));
        let closing = request.replacen("host: x", "host: x\r\nconnection: close", 1);
        let refused = raw(&address, &closing).await;
        assert!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("retry-after"), "{refused}");
    };
    let (answer, ()) = tokio::join!(open, late);
    assert!(answer.contains("\"finish_reason\":\"length\""), "{answer}");
    assert!(answer.contains("data: [DONE]\n\n"));
    assert_eq!(served.await.unwrap(), Ended::Drained);
    assert!(TcpStream::connect(&address).await.is_err(), "the port is free again");
}

#[tokio::test]
async fn after_the_drain_limit_answers_end_with_a_typed_event() {
    let server = TestServer::with(endless(), drain_limit(0.05));
    let (address, signal, served) = server.listen().await;
    let stream = raw_post("/v1/completions", &endless_body(true));
    let whole = raw_post("/v1/completions", &endless_body(false));
    let stop = async {
        until("running", || server.engine.open_requests() == 2).await;
        signal.send(()).await.unwrap();
    };
    let (stream, whole, ()) = tokio::join!(raw(&address, &stream), raw(&address, &whole), stop);
    assert!(stream.contains("\"ServiceUnavailableError\"") && stream.contains("data: [DONE]"), "{stream}");
    assert!(whole.starts_with("HTTP/1.1 503 "), "{whole}");
    assert_eq!(served.await.unwrap(), Ended::Drained);
    until("freeing", || server.engine.open_requests() == 0).await;
}

#[tokio::test]
async fn a_second_signal_stops_at_once() {
    let server = TestServer::with(endless(), drain_limit(3600.0));
    let (address, signal, served) = server.listen().await;
    let request = raw_post("/v1/completions", &endless_body(true));
    let open = tokio::spawn(async move { raw(&address, &request).await });
    until("running", || server.engine.open_requests() == 1).await;
    signal.send(()).await.unwrap();
    signal.send(()).await.unwrap();
    assert_eq!(served.await.unwrap(), Ended::Forced);
    open.abort();
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let server = TestServer::new();
    let (address, _signal, _served) = server.listen().await;
    let port = address.rsplit(':').next().unwrap().parse().unwrap();
    let args = server::cli::FrontendArgs { host: Some("127.0.0.1".into()), port, ..Default::default() };
    let error = server::http::bind(&args).await.err().unwrap().to_string();
    assert!(error.contains(&port.to_string()) && error.contains("--port"), "{error}");
}

#[tokio::test]
async fn a_unix_socket_serves() {
    let path = std::env::temp_dir().join(format!("pallium-http-test-{}.sock", std::process::id()));
    let args = server::cli::FrontendArgs { uds: Some(path.clone()), ..Default::default() };
    let listener = server::http::bind(&args).await.unwrap();
    assert!(server::http::bind(&args).await.is_err(), "in use");
    let server = TestServer::new();
    let (_signal, signals) = tokio::sync::mpsc::channel(1);
    let served = tokio::spawn(server::http::serve(listener, server.state.clone(), signals));
    let mut client = tokio::net::UnixStream::connect(&path).await.unwrap();
    client.write_all(b"GET /version HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    served.abort();
    let _ = served.await;
    let _ = std::fs::remove_file(path);
}

#[tokio::test]
async fn rows_that_the_engine_drops_end_with_a_failure() {
    let server = TestServer::new();
    let (fanout, sink) = Fanout::new(server.state.metrics.clone());
    let rows = [RowSpec { prompt_tokens: 1, max_tokens: 1 }; 2];
    let mut stream = fanout.open(server.engine.clone(), &rows, Wake::End);
    let task = tokio::spawn(fanout.clone().run());
    drop(sink);
    let mut update = Update::default();
    for _ in 0..2 {
        stream.next(&mut update).await.unwrap();
        assert_eq!(update.finish, Some(FinishReason::Error(EngineFailure::Dropped)));
    }
    assert_eq!(stream.next(&mut update).await, None);
    task.await.unwrap();
    // Whoever comes later is told as well.
    let mut late = fanout.open(server.engine.clone(), &rows[..1], Wake::End);
    late.next(&mut update).await.unwrap();
    assert_eq!(update.finish, Some(FinishReason::Error(EngineFailure::Dropped)));
}

#[tokio::test]
async fn sigterm_is_a_signal_of_the_line() {
    let mut signals = server::http::signals().unwrap();
    let pid = std::process::id().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert_eq!(tokio::time::timeout(Duration::from_secs(10), signals.recv()).await.unwrap(), Some(()));
}
