//! SIGTERM, from the first signal to the exit status; and a server that nobody asks anything.

use std::io::Read;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::process::Server;

/// The bundled model on a device that computes nothing, with a context that lasts for a while.
const LONG: &[&str] = &[
    "--device",
    "null",
    "--hf-overrides",
    "{\"max_position_embeddings\": 4000000}",
    "--num-gpu-blocks-override",
    "300000",
    "--max-num-seqs",
    "4",
];

fn long(shutdown_timeout: &str) -> Server {
    Server::start(&[LONG, &["--shutdown-timeout", shutdown_timeout]].concat())
}

/// A stream of so many tokens, once its first bytes are there.
fn stream(server: &Server, max_tokens: u32) -> (TcpStream, String) {
    let body = json!({"prompt": "Once", "max_tokens": max_tokens, "ignore_eos": true, "stream": true});
    let mut socket = server.complete(&body);
    let mut some = [0; 1024];
    let count = socket.read(&mut some).unwrap();
    let start = String::from_utf8_lossy(&some[..count]).into_owned();
    assert!(start.starts_with("HTTP/1.1 200 "), "{start}");
    (socket, start)
}

fn rest(mut socket: TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = socket.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn tail(text: &str) -> &str {
    let from = text.len().saturating_sub(600);
    text.get(from..).unwrap_or(text)
}

#[test]
fn after_sigterm_ready_is_503_open_streams_finish_and_the_status_is_0() {
    let mut server = long("60");
    assert_eq!(server.get("/ready").0, 200);
    let (open, _) = stream(&server, 40_000);
    let reader = std::thread::spawn(move || rest(open));
    server.terminate();
    let start = Instant::now();
    while server.get("/ready").0 == 200 {
        assert!(start.elapsed() < Duration::from_secs(5), "still ready");
    }
    assert_eq!(server.get("/ready"), (503, "shutting down".to_owned()));
    assert_eq!(server.get("/health").0, 200, "it is healthy while it drains");
    let refused = rest(server.complete(&json!({"prompt": "late"})));
    assert!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("retry-after: 1"), "{refused}");
    assert!(!reader.is_finished(), "the stream was meant to outlast the probes");
    let text = reader.join().unwrap();
    assert!(
        text.contains("\"finish_reason\":\"length\"") && text.contains("data: [DONE]"),
        "{}",
        tail(&text)
    );
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
}

#[test]
fn after_the_limit_streams_get_a_typed_last_event_and_the_status_is_0() {
    let mut server = long("0.3");
    let (open, _) = stream(&server, 3_900_000);
    let reader = std::thread::spawn(move || rest(open));
    server.terminate();
    let text = reader.join().unwrap();
    assert_eq!(text.matches("\"ServiceUnavailableError\"").count(), 1, "{}", tail(&text));
    assert!(
        text.contains("The server is shutting down.") && text.contains("data: [DONE]"),
        "{}",
        tail(&text)
    );
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
}

#[test]
fn a_second_signal_stops_at_once_with_a_status_that_is_not_0() {
    let mut server = long("3600");
    let (open, _) = stream(&server, 3_900_000);
    let reader = std::thread::spawn(move || rest(open));
    server.terminate();
    let start = Instant::now();
    while server.get("/ready").0 == 200 {
        assert!(start.elapsed() < Duration::from_secs(5), "still ready");
    }
    let start = Instant::now();
    server.terminate();
    assert_eq!(server.wait().code(), Some(1), "{}", server.log());
    assert!(start.elapsed() < Duration::from_secs(3), "{:?} is not at once", start.elapsed());
    reader.join().unwrap();
}

/// How often threads of a process went to sleep, and the nanoseconds they all have run.
#[cfg(target_os = "linux")]
fn sleeps_and_ns(pid: u32) -> (u64, u64) {
    let of = |task: std::fs::DirEntry| {
        let read = |name| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let status = read("status");
        let sleeps = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        let ran = read("schedstat");
        let number = |text: Option<&str>| text.and_then(|n| n.trim().parse::<u64>().ok()).unwrap_or(0);
        (number(sleeps), number(ran.split(' ').next()))
    };
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks.map_while(Result::ok).map(of).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
}

/// Counted in times woken, which a busy or swapping machine does not change; the milliseconds are printed.
#[cfg(target_os = "linux")]
#[test]
fn an_idle_server_hardly_runs() {
    const WATCHED: Duration = Duration::from_secs(12);
    let server = Server::start(&["--device", "cpu"]);
    let answer = rest(server.complete(&json!({"prompt": "Once upon a time", "max_tokens": 4})));
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    std::thread::sleep(Duration::from_secs(1));
    let before = sleeps_and_ns(server.pid());
    assert!(before.0 > 0 && before.1 > 0);
    std::thread::sleep(WATCHED);
    let after = sleeps_and_ns(server.pid());
    let (woken, used_ms) = (after.0 - before.0, (after.1 - before.1) as f64 / 1e6);
    println!("idle: woken {woken} times, {used_ms:.2} ms of CPU in {WATCHED:?}");
    assert!(woken <= 12, "woken {woken} times in {WATCHED:?}");
}
