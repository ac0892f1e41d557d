//! A server under test, whatever its engine: asked in process or through sockets.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{HeaderMap, Request};
use http_body_util::BodyExt;
use serde_json::Value;
use server::cli::FrontendArgs;
use server::http::{AppState, Ended, Front};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// The HTTP side of a server.
pub struct HttpServer {
    pub state: AppState,
    front: Front,
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    /// Text of a completion's first choice.
    pub fn text(&self) -> String {
        self.json()["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("{}", self.body)).to_owned()
    }

    /// The events of a stream; the last must be `[DONE]` and is left out.
    pub fn events(&self) -> Vec<Value> {
        let mut events: Vec<&str> =
            self.body.split_terminator("\n\n").map(|e| e.strip_prefix("data: ").expect("data: ")).collect();
        assert_eq!(events.pop(), Some("[DONE]"), "{}", self.body);
        events.into_iter().map(|e| serde_json::from_str(e).expect(e)).collect()
    }
}

impl HttpServer {
    /// All routes over this state. Answers come once [`Self::run`] was called or it listens.
    pub fn new(state: AppState) -> HttpServer {
        HttpServer { front: Front::new(state.clone()), state }
    }

    /// Passes the engine's outputs on, for requests in process.
    pub fn run(&self) {
        tokio::spawn(self.state.fanout.clone().run());
    }

    /// Serves on a socket: its address, the signal line, and how it ended.
    pub async fn listen(&self) -> (String, mpsc::Sender<()>, JoinHandle<Ended>) {
        let args = FrontendArgs { host: Some("127.0.0.1".into()), port: 0, ..FrontendArgs::default() };
        let listener = server::http::bind(&args).await.unwrap();
        let address = listener.url().strip_prefix("http://").unwrap().to_owned();
        let (signal, signals) = mpsc::channel(2);
        let served = tokio::spawn(server::http::serve(listener, self.state.clone(), signals));
        (address, signal, served)
    }

    /// Asks in process.
    pub async fn send(&self, request: Request<Body>) -> Answer {
        let (parts, body) = self.front.answer(request, "test").await.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body = String::from_utf8(bytes.to_vec()).unwrap();
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    /// Asks in process with GET.
    pub async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    /// Asks in process with a JSON body.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_bytes(path, body.to_string()).await
    }

    /// The same with any bytes that claim to be JSON.
    pub async fn post_bytes(&self, path: &str, body: impl Into<Body>) -> Answer {
        self.send(post(path, body)).await
    }

    /// A completion.
    pub async fn complete(&self, body: Value) -> Answer {
        self.post("/v1/completions", &body).await
    }

    /// A chat completion.
    pub async fn chat(&self, body: Value) -> Answer {
        self.post("/v1/chat/completions", &body).await
    }

    /// Asks for a stream and goes away before it ends.
    pub async fn hang_up(&self, body: &Value) {
        let request = post("/v1/completions", body.to_string());
        let mut answer = self.front.answer(request, "test").await.into_body();
        let _first = answer.frame().await;
    }
}

fn post(path: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(path).header("content-type", "application/json").body(body.into()).unwrap()
}

/// `base` with the fields of `extra`.
pub fn merged(mut base: Value, extra: &Value) -> Value {
    base.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    base
}

/// Waits until `done`, for at most twenty seconds.
pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A raw HTTP/1.1 request with a JSON body.
pub fn raw_post(path: &str, body: &Value) -> String {
    let body = body.to_string();
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

/// Sends raw bytes and reads until the connection closes.
pub async fn raw(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}
