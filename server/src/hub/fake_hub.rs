//! A small HTTP server that plays the hub: listing, checksums, redirects to a storage of another origin, ranges; and
//! misbehaves when told to.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How the hub behaves.
#[derive(Clone, Default)]
pub struct Behaviour {
    /// Contents by path; paths that end in `.safetensors` or `.bin` live in the storage, as large files do.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Every request without this token is refused with this status and error code.
    pub guard: Option<(&'static str, u16, &'static str)>,
    /// The storage closes the connection after so many bytes, this many times.
    pub cuts: (usize, u32),
    /// The storage flips a byte, this many times.
    pub corruptions: u32,
    /// The storage knows no ranges.
    pub no_ranges: bool,
    /// The storage sends this many bytes too many.
    pub surplus: usize,
    /// The hub answers 503 this many times.
    pub busy: u32,
    /// The listing's text, when it is not made from `files`.
    pub listing: Option<String>,
}

/// One request as it came in.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub storage: bool,
    pub method: String,
    pub path: String,
    pub authorization: Option<String>,
    pub range: Option<String>,
}

/// A running hub and its storage.
pub struct FakeHub {
    address: SocketAddr,
    state: Arc<State>,
}

struct State {
    behaviour: Mutex<Behaviour>,
    seen: Mutex<Vec<Seen>>,
    storage: SocketAddr,
}

impl FakeHub {
    pub fn start(behaviour: Behaviour) -> Self {
        let [hub, storage] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let state = Arc::new(State {
            behaviour: Mutex::new(behaviour),
            seen: Mutex::default(),
            storage: storage.local_addr().unwrap(),
        });
        let address = hub.local_addr().unwrap();
        for (listener, is_storage) in [(hub, false), (storage, true)] {
            let state = state.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let state = state.clone();
                    std::thread::spawn(move || drop(serve(&state, stream, is_storage)));
                }
            });
        }
        FakeHub { address, state }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn change(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.state.behaviour.lock().unwrap());
    }

    /// Requests since the last call.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state.seen.lock().unwrap())
    }
}

/// The hub's checksum of large contents.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Answers one request and closes the connection.
fn serve(state: &State, stream: TcpStream, storage: bool) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or(Ok(String::new()))?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut seen = Seen { storage, method, path, authorization: None, range: None };
    for line in lines {
        let line = line?;
        match line.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())) {
            Some((name, value)) if name == "authorization" => seen.authorization = Some(value),
            Some((name, value)) if name == "range" => seen.range = Some(value),
            Some(_) => {}
            None => break,
        }
    }
    state.seen.lock().unwrap().push(seen.clone());
    let answer = match storage {
        true => storage_answer(state, &seen),
        false => hub_answer(state, &seen),
    };
    answer.send(stream, seen.method == "HEAD")
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Close after this many bytes of the body.
    cut: Option<usize>,
}

impl Answer {
    fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Answer { status, headers: Vec::new(), body: body.into(), cut: None }
    }
    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
    fn send(self, mut stream: TcpStream, head: bool) -> std::io::Result<()> {
        let mut text = format!("HTTP/1.1 {} X\r\nContent-Length: {}\r\n", self.status, self.body.len());
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("Connection: close\r\n\r\n");
        stream.write_all(text.as_bytes())?;
        if !head {
            stream.write_all(&self.body[..self.cut.unwrap_or(self.body.len())])?;
        }
        Ok(())
    }
}

fn hub_answer(state: &State, seen: &Seen) -> Answer {
    let mut behaviour = state.behaviour.lock().unwrap();
    if behaviour.busy > 0 {
        behaviour.busy -= 1;
        return Answer::new(503, "");
    }
    if let Some((token, status, code)) = behaviour.guard
        && seen.authorization.as_deref() != Some(&format!("Bearer {token}"))
    {
        return Answer::new(status, "no").with("X-Error-Code", code);
    }
    if let Some(revision) = seen.path.strip_prefix("/api/models/org/tiny/revision/") {
        return match revision {
            "main" | COMMIT => Answer::new(200, listing(&behaviour)),
            _ => Answer::new(404, "").with("X-Error-Code", "RevisionNotFound"),
        };
    }
    // Small files move within the hub, by a relative redirect.
    if seen.path.ends_with("/tokenizer.json") && !seen.path.starts_with("/moved") {
        return Answer::new(307, "moved").with("Location", format!("/moved{}", seen.path));
    }
    let path = seen.path.strip_prefix("/moved").unwrap_or(&seen.path);
    let Some(path) = path.strip_prefix(&format!("/org/tiny/resolve/{COMMIT}/")) else {
        return Answer::new(404, "").with("X-Error-Code", "RepoNotFound");
    };
    match behaviour.files.get(path) {
        None => Answer::new(404, "").with("X-Error-Code", "EntryNotFound"),
        Some(bytes) if path.ends_with(".safetensors") || path.ends_with(".bin") => Answer::new(302, "")
            .with("X-Linked-Etag", format!("\"{}\"", sha256(bytes)))
            .with("X-Linked-Size", bytes.len().to_string())
            .with("Location", format!("http://{}/{path}?signature=secret", state.storage)),
        Some(bytes) => {
            Answer::new(200, bytes.clone()).with("ETag", format!("W/\"git-{}\"", &sha256(bytes)[..40]))
        }
    }
}

fn listing(behaviour: &Behaviour) -> String {
    let siblings: Vec<_> =
        behaviour.files.keys().map(|path| serde_json::json!({ "rfilename": path })).collect();
    let made = serde_json::json!({"id": "org/tiny", "sha": COMMIT, "siblings": siblings});
    behaviour.listing.clone().unwrap_or_else(|| made.to_string())
}

fn storage_answer(state: &State, seen: &Seen) -> Answer {
    let mut behaviour = state.behaviour.lock().unwrap();
    let path = seen.path.trim_start_matches('/').split('?').next().unwrap();
    let Some(mut bytes) = behaviour.files.get(path).cloned() else { return Answer::new(404, "") };
    if behaviour.corruptions > 0 {
        behaviour.corruptions -= 1;
        bytes[0] ^= 1;
    }
    bytes.resize(bytes.len() + behaviour.surplus, b'!');
    let total = bytes.len();
    let range = seen.range.as_ref().filter(|_| !behaviour.no_ranges);
    let from = range.and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let mut answer = match from {
        Some(from) => Answer::new(206, &bytes[from..])
            .with("Content-Range", format!("bytes {from}-{}/{total}", total - 1)),
        None => Answer::new(200, bytes),
    };
    if behaviour.cuts.1 > 0 && answer.body.len() > behaviour.cuts.0 {
        behaviour.cuts.1 -= 1;
        answer.cut = Some(behaviour.cuts.0);
    }
    answer
}
