//! What is logged. A line that must not come is known not to have come once a later one is there.

use serde_json::{Value, json};

use crate::effects;
use crate::harness::{Started, complete, get, line_with, ready};
use crate::process::Server;

/// The log line of a request with these flags, or `None` when the access line of the next one comes without it.
fn request_line(words: &[&str], prompt: Value) -> Option<String> {
    let server = Server::start(words);
    complete(&server, &json!({"prompt": prompt, "max_tokens": 1}));
    get(&server, "/last");
    line_with("/last", &|| server.log());
    server.log().lines().find(|line| line.contains("Received request")).map(str::to_owned)
}

effects! {
    "log-level" fn level() {
        let server = Server::start(&["--log-level", "warning", "--gpu-memory-utilization", "0.5"]);
        get(&server, "/v1/models");
        server.terminate();
        // The process says so at the level info, and ends.
        let mut server = server;
        server.wait();
        assert!(server.log().contains("WARN"), "{}", server.log());
        assert!(!server.log().contains("INFO"), "{}", server.log());
    }
    "log-format" fn format() {
        let line = ready(&["--max-num-seqs", "3", "--dtype", "float32"]);
        for (name, wanted) in [("model", json!("pallium-demo")), ("dtype", json!("float32")), ("max_num_seqs", json!(3))] {
            assert_eq!(line[name], wanted, "{line}");
        }
        for name in ["weight_bytes", "kv_tokens", "kv_bytes", "max_model_len"] {
            assert!(line[name].as_u64().is_some_and(|n| n > 0), "{name} in {line}");
        }
        for name in ["full_length_requests", "startup_s"] {
            assert!(line[name].as_f64().is_some_and(|x| x > 0.0), "{name} in {line}");
        }
        let address = line["address"].as_str().unwrap();
        assert!(address.starts_with("http://127.0.0.1:"), "{line}");
        assert!(line["example"].as_str().is_some_and(|curl| curl.contains(address)), "{line}");
        assert!(line["device"].is_string(), "{line}");
        // Every line is JSON, notices and requests among them.
        let server = Server::start(&["--log-format", "json", "--swap-space", "4"]);
        get(&server, "/v1/models");
        line_with("/v1/models", &|| server.log());
        for line in server.log().lines() {
            let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
            assert!(line["level"].is_string() && line["message"].is_string(), "{line}");
        }
    }
    "enable-log-requests" fn requests() {
        let line = request_line(&["--enable-log-requests"], json!("Once upon")).unwrap();
        assert!(line.contains("Received request cmpl-") && line.contains("prompt: \"Once upon\""), "{line}");
        assert_eq!(request_line(&[], json!("Once upon")), None);
    }
    "max-log-len" fn log_length() {
        let words = ["--enable-log-requests", "--max-log-len", "4"];
        let line = request_line(&words, json!("Once upon a time")).unwrap();
        assert!(line.contains("prompt: \"Once\","), "{line}");
        let line = request_line(&words, json!([9, 8, 7, 6, 5])).unwrap();
        assert!(line.contains("prompt_token_ids: [9, 8, 7, 6],"), "{line}");
    }
    "disable-uvicorn-access-log" fn access_log() {
        let server = Server::start(&["--disable-uvicorn-access-log", "--enable-log-requests"]);
        get(&server, "/v1/models");
        complete(&server, &json!({"prompt": "Once", "max_tokens": 1}));
        line_with("Received request", &|| server.log());
        assert!(!server.log().contains("\"GET /v1"), "{}", server.log());
        let server = Server::start(&[]);
        get(&server, "/v1/models");
        let line = line_with("/v1/models", &|| server.log());
        assert!(line.contains("127.0.0.1:") && line.ends_with("- \"GET /v1/models HTTP/1.1\" 200"), "{line}");
    }
    "disable-access-log-for-endpoints" fn quiet_endpoints() {
        let server = Server::start(&["--disable-access-log-for-endpoints", "/health,/version"]);
        for path in ["/health", "/version", "/load"] {
            get(&server, path);
        }
        line_with("GET /load", &|| server.log());
        assert!(!server.log().contains("/health") && !server.log().contains("/version"), "{}", server.log());
    }
    "disable-log-stats" fn stats() {
        // The line comes every ten seconds, while idle at the level debug.
        let words = ["serve", "--host", "127.0.0.1", "--port", "0", "--log-level", "debug"];
        let without = Started::new(&[&words[..], &["--disable-log-stats"]].concat());
        without.line_with("address");
        let with = Started::new(&words);
        let line = with.line_with("Engine 000");
        assert!(line.contains("Avg prompt throughput: 0.0 tokens/s"), "{line}");
        assert!(!without.log().contains("Engine 000"), "{}", without.log());
    }
}
