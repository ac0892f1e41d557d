//! Where the server listens, who may ask, and what HTTP answers carry.

use std::io::Read;

use serde_json::{Value, json};

use crate::effects;
use crate::harness::{ENDLESS, LONG, Started, TempDir, ask, ask_unix, complete, get, metric, open_stream};
use crate::process::Server;

fn endless(n: u32) -> Value {
    json!({"prompt": "Once", "max_tokens": ENDLESS, "ignore_eos": true, "stream": true, "n": n, "temperature": 1})
}

const BROWSER: [(&str, &str); 3] = [
    ("origin", "http://page"),
    ("access-control-request-method", "PUT"),
    ("access-control-request-headers", "x-one"),
];

/// The answer to a preflight of a page that may ask.
fn preflight(words: &[&str], name: &str) -> Option<String> {
    let words = [&["--allowed-origins", "[\"http://page\"]"], words].concat();
    let reply = ask(&Server::start(&words).address, "OPTIONS /v1/models", &BROWSER, "");
    reply.header(name).map(str::to_owned)
}

effects! {
    "host" fn host() {
        let started = Started::new(&["serve", "--host", "127.0.0.2", "--port", "0"]);
        let line = started.line_with("address");
        let address = line.trim().rsplit("http://").next().unwrap();
        assert!(address.starts_with("127.0.0.2:"), "{line}");
        assert_eq!(ask(address, "GET /version", &[], "").status, 200);
    }
    "port" fn port() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let started = Started::new(&["serve", "--host", "127.0.0.1", "--port", &free.to_string()]);
        let line = started.line_with("address");
        assert!(line.ends_with(&format!("http://127.0.0.1:{free}")), "{line}");
        assert_eq!(ask(&format!("127.0.0.1:{free}"), "GET /version", &[], "").status, 200);
    }
    "uds" fn uds() {
        let dir = TempDir::new("uds");
        let path = dir.path("s");
        let started = Started::new(&["serve", "--uds", &path]);
        assert!(started.line_with("address").ends_with(&path));
        assert!(started.line_with("curl").contains(&format!("--unix-socket '{path}'")));
        assert_eq!(ask_unix(&path, "GET /version").status, 200);
    }
    "api-key" fn api_key() {
        let server = Server::start(&["--api-key", "one", "two"]);
        let status = |headers: &[(&str, &str)]| ask(&server.address, "GET /v1/models", headers, "").status;
        assert_eq!(status(&[]), 401);
        assert_eq!(status(&[("authorization", "Bearer three")]), 401);
        assert_eq!(status(&[("authorization", "Bearer one")]), 200);
        assert_eq!(status(&[("authorization", "Bearer two")]), 200);
        assert_eq!(get(&server, "/health").status, 200);
    }
    "max-num-seqs-per-key" fn seqs_per_key() {
        let server = Server::start(&[LONG, &["--api-key", "one", "two", "--max-num-seqs-per-key", "2"]].concat());
        let ask_as = |key: &str, n: u32| {
            let headers = [("authorization", key)];
            let body = json!({"prompt": "Once", "max_tokens": 2, "n": n, "temperature": 1}).to_string();
            ask(&server.address, "POST /v1/completions", &headers, &body)
        };
        let open = open_stream(&server, &[("authorization", "Bearer one")], &endless(2));
        let refused = ask_as("Bearer one", 1);
        assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")), "{refused:?}");
        let error = &refused.json()["error"];
        assert_eq!((&error["type"], &error["code"]), (&json!("Too Many Requests"), &json!(429)));
        assert_eq!(ask_as("Bearer two", 2).status, 200, "another key has its own account");
        assert_eq!(ask_as("Bearer two", 3).status, 400, "what can never be is not worth trying again");
        let labels = "engine=\"0\",model_name=\"pallium-demo\",reason=\"max_num_seqs_per_key\"";
        assert_eq!(metric(&server, &format!("vllm:admission_rejections_total{{{labels}}}")), 1.0);
        drop(open);
        let start = std::time::Instant::now();
        while ask_as("Bearer one", 2).status != 200 {
            assert!(start.elapsed().as_secs() < 20, "a client that goes away gives its account back");
        }
    }
    "root-path" fn root_path() {
        let server = Server::start(&["--root-path", "/llm"]);
        assert_eq!(get(&server, "/llm/v1/models").status, 200);
        assert_eq!(get(&server, "/v1/models").status, 200);
        assert_eq!(get(&Server::start(&[]), "/llm/v1/models").status, 404);
    }
    "allowed-origins" fn origins() {
        let allowed = "access-control-allow-origin";
        let ask_from = |words: &[&str]| {
            let reply = ask(&Server::start(words).address, "GET /v1/models", &BROWSER[..1], "");
            reply.header(allowed).map(str::to_owned)
        };
        assert_eq!(ask_from(&[]), None);
        assert_eq!(ask_from(&["--allowed-origins", "[\"*\"]"]).as_deref(), Some("*"));
        assert_eq!(ask_from(&["--allowed-origins", "[\"http://page\"]"]).as_deref(), Some("http://page"));
        assert_eq!(ask_from(&["--allowed-origins", "[\"http://other\"]"]), None);
    }
    "allowed-methods" fn methods() {
        let allowed = "access-control-allow-methods";
        assert!(preflight(&[], allowed).unwrap().contains("PUT"));
        assert_eq!(preflight(&["--allowed-methods", "[\"PUT\", \"GET\"]"], allowed).as_deref(), Some("PUT, GET"));
        assert_eq!(preflight(&["--allowed-methods", "[\"GET\"]"], allowed), None);
    }
    "allowed-headers" fn headers() {
        let allowed = "access-control-allow-headers";
        assert_eq!(preflight(&[], allowed).as_deref(), Some("x-one"));
        assert_eq!(preflight(&["--allowed-headers", "[\"x-two\"]"], allowed).as_deref(), Some("x-two"));
    }
    "allow-credentials" fn credentials() {
        let allowed = "access-control-allow-credentials";
        assert_eq!(preflight(&[], allowed), None);
        assert_eq!(preflight(&["--allow-credentials"], allowed).as_deref(), Some("true"));
    }
    "enable-request-id-headers" fn request_ids() {
        let server = Server::start(&["--enable-request-id-headers"]);
        let echoed = ask(&server.address, "GET /version", &[("x-request-id", "abc")], "");
        assert_eq!(echoed.header("x-request-id"), Some("abc"));
        assert!(get(&server, "/version").header("x-request-id").is_some_and(|id| id.len() == 32));
        assert_eq!(get(&Server::start(&[]), "/version").header("x-request-id"), None);
    }
    "stream-interval" fn stream_interval() {
        let server = Server::start(&["--stream-interval", "5"]);
        let body = json!({
            "prompt": "Once", "max_tokens": 23, "ignore_eos": true, "stream": true, "return_token_ids": true
        });
        let events = complete(&server, &body).events();
        let counts: Vec<usize> =
            events.iter().map(|e| e["choices"][0]["token_ids"].as_array().unwrap().len()).collect();
        assert_eq!(counts.iter().sum::<usize>(), 23);
        let between = &counts[1..counts.len() - 1];
        assert!(!between.is_empty() && between.iter().all(|count| *count >= 5), "{counts:?}");
    }
    "sse-keep-alive-interval" fn keep_alive() {
        let server = Server::start(&[LONG, &["--max-num-seqs", "1", "--sse-keep-alive-interval", "0.01"]].concat());
        let _first = open_stream(&server, &[], &endless(1));
        // The second waits for the first, and its stream is silent.
        let mut silent = server.complete(&endless(1));
        let mut text = String::new();
        let mut some = [0; 256];
        while text.matches(": keep-alive\n\n").count() < 2 {
            let count = silent.read(&mut some).unwrap();
            assert!(count > 0, "{text}");
            text.push_str(&String::from_utf8_lossy(&some[..count]));
        }
        assert!(!text.contains("data:"), "{text}");
    }
    "disable-fastapi-docs" fn docs() {
        assert_eq!(get(&Server::start(&["--disable-fastapi-docs"]), "/openapi.json").status, 404);
        assert_eq!(get(&Server::start(&[]), "/openapi.json").status, 200);
    }
    "enable-server-load-tracking" fn load() {
        for (words, load) in [(&["--enable-server-load-tracking"][..], 1), (&[], 0)] {
            let server = Server::start(&[LONG, words].concat());
            let _open = open_stream(&server, &[], &endless(1));
            assert_eq!(get(&server, "/load").json(), json!({"server_load": load}));
        }
    }
    "config" fn config() {
        let dir = TempDir::new("yaml");
        let file = dir.write("c.yaml", "served_model_name: [from-file]\nmax-model-len: 1k\nallow-credentials: true\n");
        let card = |words: &[&str]| get(&Server::start(words), "/v1/models").json()["data"][0].clone();
        let read = card(&["--config", &file]);
        assert_eq!((&read["id"], &read["max_model_len"]), (&json!("from-file"), &json!(1000)));
        let won = card(&["--config", &file, "--max-model-len", "1K"]);
        assert_eq!((&won["id"], &won["max_model_len"]), (&json!("from-file"), &json!(1024)));
    }
}
