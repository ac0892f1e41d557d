//! The commands around serving, run as programs: chat and complete in process and against a server, on the bundled
//! model and on checkpoints that `bench make-checkpoint` writes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};

fn pallium(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pallium"));
    command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn output(words: &[&str]) -> Output {
    pallium(words).output().expect("the program starts")
}

/// Standard output of a run that must succeed.
fn said(words: &[&str]) -> String {
    let out = output(words);
    assert!(out.status.success(), "{words:?}: {out:?}");
    String::from_utf8(out.stdout).unwrap()
}

fn piped(words: &[&str], input: &str) -> Output {
    let mut child = pallium(words).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// A directory that goes away with its test.
struct TempDir(PathBuf);

impl TempDir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("pallium-commands-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        TempDir(dir)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A checkpoint of one small layer with the bundled model's tokenizer and template.
fn tiny_checkpoint(dir: &TempDir) -> String {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo-model");
    let shape = dir.path("shape");
    std::fs::create_dir(&shape).unwrap();
    let text = std::fs::read_to_string(demo.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    for (key, value) in [
        ("hidden_size", json!(32)),
        ("intermediate_size", json!(64)),
        ("num_hidden_layers", json!(1)),
        ("num_attention_heads", json!(2)),
        ("num_key_value_heads", json!(1)),
        ("head_dim", json!(16)),
        ("initializer_range", json!(0.5)),
    ] {
        config[key] = value;
    }
    std::fs::write(Path::new(&shape).join("config.json"), config.to_string()).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(demo.join(name), Path::new(&shape).join(name)).unwrap();
    }
    let model = dir.path("model");
    let line = said(&["bench", "make-checkpoint", &shape, "-o", &model, "--dtype", "float32", "--seed", "7"]);
    assert!(line.contains("float32 weights in 1 files, 2 files copied"), "{line}");
    model
}

/// A server on a port of its own; killed when dropped.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start(model: &str, more: &[&str]) -> Server {
        let mut words = vec!["serve", model, "--host", "127.0.0.1", "--port", "0"];
        words.extend(more);
        let mut child = pallium(&words).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut seen = Vec::new();
        let url = loop {
            let Some(Ok(line)) = lines.next() else { panic!("the server did not start: {seen:?}") };
            if let Some(url) = line.trim().strip_prefix("address") {
                break url.trim().to_owned();
            }
            seen.push(line);
        };
        // Whoever writes to a closed pipe is in trouble: read on to the end.
        std::thread::spawn(move || lines.for_each(drop));
        Server { child, url: format!("{url}/v1") }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn chat_reads_lines_and_remembers_until_it_is_cleared() {
    let first = said(&["chat", "--temperature", "0", "-q", "What is 2+3?"]);
    assert!(first.ends_with('\n') && first.trim().contains('5'), "{first}");
    let input = "What is 2+3?\n\n/clear\n/nonsense\nWhat is 2+3?\nWhat is 2+3?\n/exit\nWhat is 2+3?\n";
    let out = piped(&["chat", "--temperature", "0", "--max-tokens", "12"], input);
    assert!(out.status.success(), "{out:?}");
    let answers: Vec<&str> = std::str::from_utf8(&out.stdout).unwrap().lines().collect();
    assert_eq!(answers.len(), 3, "one line an answer, none after /exit: {answers:?}");
    assert_eq!([answers[0], answers[1]], [first.trim(); 2], "/clear starts over");
    let complaints = String::from_utf8(out.stderr).unwrap();
    assert!(complaints.contains("/nonsense: no such order"), "{complaints}");
    assert!(!complaints.contains("> "), "no prompt for a pipe: {complaints}");
}

#[test]
fn a_server_and_this_process_give_one_answer() {
    let dir = TempDir::new("server");
    let model = tiny_checkpoint(&dir);
    let server = Server::start(&model, &["--api-key", "k", "--served-model-name", "tiny"]);
    let rules = ["--temperature", "0", "--max-tokens", "9"];
    for (command, message) in [("chat", "Hello there"), ("complete", "Once upon")] {
        let here = said(&[&[command, &model, "-q", message][..], &rules].concat());
        let there = [&[command, "--url", &server.url, "--api-key", "k", "-q", message][..], &rules].concat();
        assert_eq!(said(&there), here, "{command}");
        let named = [&there[..], &["--model-name", "tiny", "--stats"]].concat();
        let out = output(&named);
        assert_eq!(String::from_utf8(out.stdout).unwrap(), here);
        let stats = String::from_utf8(out.stderr).unwrap();
        assert!(stats.contains("TTFT") && stats.contains("tok/s, 9 tokens]"), "{stats}");
    }
    for (words, wanted) in [
        (vec!["chat", "--url", &server.url, "-q", "x"], "Unauthorized"),
        (
            vec!["chat", "--url", &server.url, "--api-key", "k", "--model-name", "other", "-q", "x"],
            "The model `other` does not exist",
        ),
    ] {
        let out = output(&words);
        assert_eq!(out.status.code(), Some(1), "{words:?}");
        let complaint = String::from_utf8(out.stderr).unwrap();
        assert!(complaint.contains(wanted), "{words:?}: {complaint}");
    }
}

#[test]
fn complete_takes_each_line_by_itself() {
    let dir = TempDir::new("complete");
    let model = tiny_checkpoint(&dir);
    let rules = ["--temperature", "0", "--max-tokens", "5"];
    let alone = said(&[&["complete", &model, "-q", "The sun"][..], &rules].concat());
    let out = piped(&[&["complete", &model][..], &rules].concat(), "The sun\n\nThe sun\n/exit\nThe sun\n");
    assert!(out.status.success(), "{out:?}");
    assert_eq!(String::from_utf8(out.stdout).unwrap(), alone.repeat(2));
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_piped_work() {
    let dir = TempDir::new("interrupt");
    let model = tiny_checkpoint(&dir);
    let words = ["complete", &model, "--max-tokens", "500", "--temperature", "2"];
    let mut child = pallium(&words).stdin(Stdio::piped()).spawn().unwrap();
    // More lines than can be answered before the signal.
    child.stdin.take().unwrap().write_all("The sun\n".repeat(1000).as_bytes()).unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut first = [0];
    std::io::Read::read_exact(&mut out, &mut first).unwrap();
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    std::io::copy(&mut out, &mut std::io::sink()).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn what_cannot_start_says_why() {
    for (words, wanted) in [
        (vec!["chat", "--device", "null", "-q", "x"], "--device null: computes nothing"),
        (vec!["complete", "--url", "http://127.0.0.1:1/v1", "-q", "x"], "http://127.0.0.1:1/v1"),
        (vec!["pull", "../no/such/model"], "neither a directory nor a hub id"),
        (vec!["bench", "make-checkpoint", "no-such-file.json", "-o", "o"], "no-such-file.json is not there"),
    ] {
        let out = output(&words);
        assert_eq!(out.status.code(), Some(1), "{words:?}: {out:?}");
        let complaint = String::from_utf8(out.stderr).unwrap();
        assert!(complaint.starts_with("error: ") && complaint.contains(wanted), "{words:?}: {complaint}");
        assert!(out.stdout.is_empty());
    }
}

#[test]
fn the_null_device_serves_a_bare_configuration() {
    let dir = TempDir::new("null");
    let model = tiny_checkpoint(&dir);
    std::fs::remove_file(Path::new(&model).join("model.safetensors")).unwrap();
    std::fs::remove_file(Path::new(&model).join("tokenizer.json")).unwrap();
    let server = Server::start(&model, &["--device", "null", "--load-format", "dummy"]);
    let out = output(&["complete", "--url", &server.url, "-q", "abc", "--max-tokens", "6", "--stats"]);
    assert!(out.status.success(), "{out:?}");
    let stats = String::from_utf8(out.stderr).unwrap();
    assert!(stats.contains(" tokens]"), "{stats}");
}
