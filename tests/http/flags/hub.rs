//! Where models are fetched from and kept: the flags against a listener that plays the hub and has nothing.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, channel};

use crate::effects;
use crate::harness::TempDir;
use crate::process::{Server, command};

/// A hub that answers 404; it hands on the head of each request.
fn hub() -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (asked, requests) = channel();
    std::thread::spawn(move || {
        for mut socket in listener.incoming().map_while(Result::ok) {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && socket.read(&mut byte).is_ok_and(|n| n == 1) {
                head.push(byte[0]);
            }
            let _ = asked.send(String::from_utf8_lossy(&head).to_lowercase());
            let _ =
                socket.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
    });
    (url, requests)
}

/// What `serve` with these words first asks the hub.
fn first_request(words: &[&str]) -> String {
    let (url, requests) = hub();
    let home = TempDir::new(&format!("hub-{}", words.join("").replace(['/', '-'], "")));
    let out = command(&[&["serve", "--port", "0"], words].concat())
        .env("HF_HUB_OFFLINE", "0")
        .env("HF_ENDPOINT", url)
        .env("HF_HOME", home.path(""))
        .env_remove("HF_HUB_CACHE")
        .env_remove("HF_TOKEN")
        .env("NO_PROXY", "127.0.0.1")
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{said}");
    requests.try_recv().unwrap_or_else(|_| panic!("nobody asked the hub: {said}"))
}

effects! {
    "revision" fn revision() {
        assert!(first_request(&["org/name", "--revision", "v2"]).contains("/api/models/org/name/revision/v2"));
        assert!(first_request(&["org/name"]).contains("/api/models/org/name/revision/main"));
    }
    "tokenizer-revision" fn tokenizer_revision() {
        let words = ["--tokenizer", "org/words", "--tokenizer-revision", "v3"];
        assert!(first_request(&words).contains("/api/models/org/words/revision/v3"));
    }
    "hf-token" fn token() {
        assert!(first_request(&["org/name", "--hf-token", "hf_abc"]).contains("authorization: bearer hf_abc"));
        assert!(!first_request(&["org/name"]).contains("authorization"));
    }
    "download-dir" fn download_dir() {
        let dir = TempDir::new("download");
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let files = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
        dir.copy(&format!("models--org--name/snapshots/{commit}"), &files);
        std::fs::create_dir_all(dir.path("models--org--name/refs")).unwrap();
        dir.write("models--org--name/refs/main", commit);
        let server = Server::start(&["org/name", "--download-dir", &dir.path("")]);
        assert_eq!(server.get("/health").0, 200);
    }
}
