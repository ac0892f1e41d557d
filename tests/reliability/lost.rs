//! A process whose device is lost: its streams fail, then it ends with a status that is not 0.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[test]
fn a_server_whose_engine_is_lost_ends_with_status_1() {
    for fault in ["lost", "panic"] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_rigged-server"))
            .args([fault, "40", "--host", "127.0.0.1", "--port", "0"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let found = lines.by_ref().map_while(Result::ok).find_map(|line| {
            let (_, rest) = line.split_once("http://127.0.0.1:")?;
            Some(rest.chars().take_while(char::is_ascii_digit).collect::<String>())
        });
        let address = format!("127.0.0.1:{}", found.expect("it listens"));
        let log = std::thread::spawn(move || lines.map_while(Result::ok).collect::<Vec<_>>().join("\n"));
        let body = r#"{"prompt": "a", "max_tokens": 200, "ignore_eos": true, "stream": true}"#;
        let mut socket = TcpStream::connect(&address).unwrap();
        let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json";
        write!(socket, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        assert!(
            answer.contains("The engine lost its device.") && answer.contains("data: [DONE]"),
            "{answer}"
        );
        assert_eq!(answer.matches("\"InternalServerError\"").count(), 1, "{answer}");
        let start = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "{fault}: it goes on");
            std::thread::sleep(Duration::from_millis(10));
        };
        let log = log.join().unwrap();
        assert_eq!(status.code(), Some(1), "{log}");
    }
}
