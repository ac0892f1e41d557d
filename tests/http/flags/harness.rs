//! Asking a running program, and reading its log.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::process::{Server, bundled_model, command};

/// The bundled model on a device that computes nothing, with a context that lasts for a while.
pub const LONG: &[&str] = &[
    "--device",
    "null",
    "--hf-overrides",
    "{\"max_position_embeddings\": 4000000}",
    "--num-gpu-blocks-override",
    "300000",
];
/// Tokens that take the null device longer than a test.
pub const ENDLESS: u32 = 2_000_000;

/// A whole answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    /// Status line and headers, names in lower case as the server sends them.
    pub head: String,
    pub body: String,
}

impl Reply {
    fn parse(text: &str) -> Reply {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let chunked = head.contains("transfer-encoding: chunked");
        Reply { status, head: head.to_owned(), body: if chunked { joined(body) } else { body.to_owned() } }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// Events of a stream but for `[DONE]`.
    pub fn events(&self) -> Vec<Value> {
        let data = self.body.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
        data.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.find(|(key, _)| *key == name).map(|(_, value)| value)
    }

    /// Text of the first choice of a completion.
    pub fn text(&self) -> String {
        self.json()["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("{self:?}")).to_owned()
    }
}

/// A body out of its chunks.
fn joined(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, more)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        body.push_str(&more[..size]);
        rest = &more[size + 2..];
    }
    body
}

fn request(line: &str, headers: &[(&str, &str)], body: &str) -> String {
    let mut text = format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        text.push_str(&format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len()));
    }
    format!("{text}\r\n{body}")
}

/// Sends a request line such as `GET /version` and reads the answer.
pub fn ask(address: &str, line: &str, headers: &[(&str, &str)], body: &str) -> Reply {
    read(TcpStream::connect(address).unwrap(), &request(line, headers, body))
}

/// The same through a Unix socket.
pub fn ask_unix(path: &str, line: &str) -> Reply {
    read(UnixStream::connect(path).unwrap(), &request(line, &[], ""))
}

fn read(mut socket: impl Read + Write, request: &str) -> Reply {
    socket.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).unwrap();
    Reply::parse(&String::from_utf8(answer).unwrap())
}

pub fn get(server: &Server, path: &str) -> Reply {
    ask(&server.address, &format!("GET {path}"), &[], "")
}

pub fn post(server: &Server, path: &str, body: &Value) -> Reply {
    ask(&server.address, &format!("POST {path}"), &[], &body.to_string())
}

pub fn complete(server: &Server, body: &Value) -> Reply {
    post(server, "/v1/completions", body)
}

/// Asks for a stream and returns it once its first bytes are there.
pub fn open_stream(server: &Server, headers: &[(&str, &str)], body: &Value) -> TcpStream {
    let mut socket = TcpStream::connect(&server.address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    socket.write_all(request("POST /v1/completions", headers, &body.to_string()).as_bytes()).unwrap();
    let mut some = [0; 512];
    let count = socket.read(&mut some).unwrap();
    let start = String::from_utf8_lossy(&some[..count]);
    assert!(start.starts_with("HTTP/1.1 200 "), "{start}");
    socket
}

/// The value of a series of /metrics.
pub fn metric(server: &Server, series: &str) -> f64 {
    let text = get(server, "/metrics").body;
    let line = text.lines().find(|l| l.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
    line.unwrap_or_else(|| panic!("{series} in\n{text}")).rsplit(' ').next().unwrap().parse().unwrap()
}

/// A label of `vllm:cache_config_info`.
pub fn cache_label(server: &Server, name: &str) -> String {
    let text = get(server, "/metrics").body;
    let line = text.lines().find(|l| l.starts_with("vllm:cache_config_info{")).unwrap();
    let (_, rest) = line.split_once(&format!("{name}=\"")).unwrap_or_else(|| panic!("{name} in {line}"));
    rest.split('"').next().unwrap().to_owned()
}

/// A program that was started with exactly these words.
pub struct Started {
    pub child: Child,
    log: Arc<Mutex<String>>,
}

impl Started {
    pub fn new(words: &[&str]) -> Started {
        let mut child = command(words).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let kept = log.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let mut log = kept.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        Started { child, log }
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// The first line with this text, once it is there.
    pub fn line_with(&self, text: &str) -> String {
        line_with(text, &|| self.log())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The first line of a log with this text, once it is there.
pub fn line_with(text: &str, log: &dyn Fn() -> String) -> String {
    let start = Instant::now();
    loop {
        let log = log();
        if let Some(line) = log.lines().find(|line| line.contains(text)) {
            return line.to_owned();
        }
        assert!(start.elapsed() < Duration::from_secs(60), "no {text:?} in {log}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What a server with these flags says when it is ready, as JSON.
pub fn ready(words: &[&str]) -> Value {
    let fixed = ["serve", "--host", "127.0.0.1", "--port", "0", "--log-format", "json"];
    let started = Started::new(&[&fixed, words].concat());
    serde_json::from_str(&started.line_with("\"message\":\"ready\"")).unwrap()
}

/// A directory that goes away with its test.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("pallium-flags-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        TempDir(dir)
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    pub fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.0.join(name), text).unwrap();
        self.path(name)
    }

    /// Copies files of the bundled model into a directory inside.
    pub fn copy(&self, into: &str, names: &[&str]) -> String {
        let to = Path::new(&self.path(into)).to_owned();
        std::fs::create_dir_all(&to).unwrap();
        for name in names {
            std::fs::copy(bundled_model().join(name), to.join(name)).unwrap();
        }
        to.to_str().unwrap().to_owned()
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
