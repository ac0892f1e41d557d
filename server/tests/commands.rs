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

fn json_file(path: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn bench_latency_prints_and_writes_its_figures() {
    let dir = TempDir::new("latency");
    let (model, file) = (tiny_checkpoint(&dir), dir.path("latency.json"));
    let lengths = ["--input-len", "8", "--output-len", "5", "--batch-size", "2", "--n", "2"];
    let rounds = ["--num-iters-warmup", "1", "--num-iters", "3", "--threads", "1", "--output-json", &file];
    let printed = said(&[&["bench", "latency", &model][..], &lengths, &rounds].concat());
    let lines: Vec<&str> = printed.lines().collect();
    assert!(lines[0].starts_with("Avg latency: ") && lines[0].ends_with(" seconds"), "{printed}");
    let percentiles: Vec<&str> = lines[1..7].iter().map(|l| l.split('%').next().unwrap()).collect();
    assert_eq!(percentiles, ["10", "25", "50", "75", "90", "99"], "{printed}");
    assert!(
        lines[7].starts_with("Prefill: 4 x 8 tokens in ") && lines[8].starts_with("Decode: "),
        "{printed}"
    );
    assert!(lines[9].starts_with("Machine limit: ") && lines[9].contains("(1 threads, "), "{printed}");
    let figures = json_file(&file);
    assert_eq!(keys(&figures)[..3], ["avg_latency", "latencies", "percentiles"]);
    assert_eq!(keys(&figures["percentiles"]), ["10", "25", "50", "75", "90", "99"]);
    let latencies: Vec<f64> =
        figures["latencies"].as_array().unwrap().iter().map(|l| l.as_f64().unwrap()).collect();
    assert_eq!(latencies.len(), 3);
    let mean = latencies.iter().sum::<f64>() / 3.0;
    assert!((figures["avg_latency"].as_f64().unwrap() - mean).abs() < 1e-9);
    let (prefill_s, step_s) =
        (figures["prefill_s"].as_f64().unwrap(), figures["decode_step_s"].as_f64().unwrap());
    assert!(prefill_s > 0.0 && prefill_s < latencies.iter().copied().fold(0.0, f64::max) && step_s > 0.0);
    for part in ["prefill", "decode"] {
        let share = figures[part]["share_of_limit"].as_f64().unwrap();
        assert!(share > 0.0 && share < 2.0, "{part}: {share}");
    }
    assert!(figures["machine_limits"]["read_bytes_per_s"].as_f64().unwrap() > 1e8);
    let long = output(&["bench", "latency", &model, "--input-len", "2000", "--output-len", "100"]);
    let complaint = String::from_utf8(long.stderr).unwrap();
    assert!(complaint.contains("exceed the context of 2048 tokens"), "{complaint}");
}

#[test]
fn bench_throughput_counts_every_token() {
    let dir = TempDir::new("throughput");
    let (model, file) = (tiny_checkpoint(&dir), dir.path("throughput.json"));
    let random = ["--num-prompts", "12", "--input-len", "9", "--output-len", "4", "--threads", "1"];
    let command = ["bench", "throughput", &model, "--n", "2", "--output-json", &file];
    let printed = said(&[&command[..], &random].concat());
    let first = printed.lines().next().unwrap();
    assert!(first.starts_with("Throughput: ") && first.contains(" requests/s, "), "{printed}");
    assert!(first.contains(" total tokens/s, ") && first.ends_with(" output tokens/s"), "{printed}");
    let figures = json_file(&file);
    assert_eq!(
        keys(&figures)[..6],
        [
            "model_id",
            "elapsed_time",
            "num_requests",
            "total_num_tokens",
            "requests_per_second",
            "tokens_per_second"
        ]
    );
    assert_eq!(figures["num_requests"], 12);
    assert_eq!((&figures["total_prompt_tokens"], &figures["total_output_tokens"]), (&json!(108), &json!(96)));
    assert_eq!(figures["total_num_tokens"], 204);

    let prompts = dir.path("prompts.jsonl");
    std::fs::write(&prompts, "{\"prompt\": \"Hello there\"}\n{\"prompt\": \"Bye\"}\n").unwrap();
    let custom = ["--dataset-name", "custom", "--dataset-path", &prompts, "--output-len", "3"];
    said(&[&["bench", "throughput", &model, "--threads", "1", "--output-json", &file][..], &custom].concat());
    let figures = json_file(&file);
    assert_eq!((&figures["num_requests"], &figures["total_output_tokens"]), (&json!(2), &json!(6)));
    let missing = ["--dataset-name", "sharegpt", "--dataset-path", "no-such.json"];
    let out = output(&[&["bench", "throughput", &model][..], &missing].concat());
    assert!(String::from_utf8(out.stderr).unwrap().contains("--dataset-path no-such.json"));
}

#[test]
fn bench_startup_times_this_very_program() {
    let dir = TempDir::new("startup");
    let (model, file) = (tiny_checkpoint(&dir), dir.path("startup.json"));
    let counts = ["--num-iters-cold", "1", "--num-iters-warm", "2", "--output-json", &file];
    let printed = said(&[&["bench", "startup", &model, "--max-num-seqs", "3"][..], &counts].concat());
    assert!(printed.contains("Cold starts: 1") && printed.contains("Warm starts: 2"), "{printed}");
    let figures = json_file(&file);
    for (kind, count) in [("cold", 1), ("warm", 2)] {
        let times = figures[format!("{kind}_startup_times")].as_array().unwrap();
        let ready = figures[format!("avg_{kind}_ready_time")].as_f64().unwrap();
        let first = figures[format!("avg_{kind}_startup_time")].as_f64().unwrap();
        assert!(times.len() == count && ready > 0.0 && ready < first, "{figures}");
    }
    let broken = output(&["bench", "startup", &model, "--kv-cache-memory-bytes", "1k"]);
    let complaint = String::from_utf8(broken.stderr).unwrap();
    assert!(complaint.contains("the server did not start") && complaint.contains("KV cache"), "{complaint}");
}

#[test]
fn doctor_says_what_there_is_and_what_fits() {
    let text = said(&["doctor"]);
    for wanted in ["\nMachine\n", "CPU", "\nDevices\n", "cuda", "\nModels\n", "pallium-demo", "Llama 3.1 8B"]
    {
        assert!(text.contains(wanted), "no {wanted:?} in\n{text}");
    }
    let dir = TempDir::new("doctor");
    let model = tiny_checkpoint(&dir);
    let report: Value =
        serde_json::from_str(&said(&["doctor", &model, "--json", "--max-model-len", "64"])).unwrap();
    assert!(report["machine"]["usable_cpus"].as_u64().unwrap() >= 1);
    let devices = report["devices"].as_array().unwrap();
    let cpu = devices.iter().find(|d| d["kind"] == "cpu").unwrap();
    assert_eq!(cpu["runs"], true, "{cpu}");
    assert!(devices.iter().all(|d| d["runs"] == true || d["reason"].as_str().is_some_and(|r| r.len() > 20)));
    let fit = &report["models"][0];
    let size = std::fs::metadata(Path::new(&model).join("model.safetensors")).unwrap().len();
    let weights = fit["weight_bytes"].as_u64().unwrap();
    assert!(weights <= size && size < weights + 8192, "all but the header of {size} bytes: {fit}");
    assert_eq!((&fit["max_model_len"], &fit["longest_context"]), (&json!(64), &json!(64)));
    // Keys and values of 16 elements, 4 bytes each.
    assert_eq!(fit["kv_bytes_per_token"], 128);
    let missing = pallium(&["doctor", "no-such/model"]).env("HF_HUB_OFFLINE", "1").output().unwrap();
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8(missing.stderr).unwrap().contains("no-such/model"));
}
