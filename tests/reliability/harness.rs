//! The whole server over the engine loop and a rigged do-nothing device.
#![allow(dead_code, reason = "each test program uses its part")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{HeaderMap, Request};
use engine_core::config::GenerationConfig;
use http_body_util::BodyExt;
use serde_json::{Map, Value};
use server::cli::{EngineArgs, FrontendArgs, LoadFormat, LogFormat};
use server::client::EngineClient;
use server::client::mock::bytes::ByteCodec;
use server::engine::ThreadEngine;
use server::fanout::Fanout;
use server::http::metrics::Metrics;
use server::http::{AppParts, AppState, Ended, Front, HttpOptions};
use server::model::OpenModel;
use server::openai::codec::Codec;
use server::openai::sampling::SamplingDefaults;
use tests::null;
use tests::rigged::{Rig, Rigged};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

pub struct Server {
    pub state: AppState,
    pub engine: Arc<ThreadEngine>,
    pub rig: Arc<Rig>,
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
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }
    pub fn text(&self) -> String {
        self.json()["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("{}", self.body)).to_owned()
    }
}

impl Server {
    /// A server that answers in process: a model of this context length.
    pub fn start(args: EngineArgs, options: HttpOptions, max_len: u32) -> Arc<Server> {
        let server = Self::build(args, options, max_len, Arc::new(ByteCodec));
        tokio::spawn(server.state.fanout.clone().run());
        server
    }

    /// The same, not yet running: for [`Self::listen`], or with another tokenizer.
    pub fn build(
        mut args: EngineArgs,
        mut options: HttpOptions,
        max_len: u32,
        codec: Arc<dyn Codec>,
    ) -> Arc<Server> {
        args.load_format = LoadFormat::Dummy;
        options.frontend.disable_access_log = true;
        options.log_stats = false;
        options.seed = options.seed.or(Some(args.seed));
        let model = OpenModel {
            dir: "/nowhere".into(),
            names: vec!["null".into()],
            root: "null".into(),
            config: null::config(max_len),
            generation: GenerationConfig::from_json(&Map::new()).unwrap(),
            codec,
            chat: None,
        };
        let (backend, rig) = Rigged::new(null::backend());
        let metrics = Arc::new(Metrics::new(max_len));
        let (fanout, sink) = Fanout::new(metrics.clone());
        let engine =
            server::engine::start_on(backend, &model, &args, Box::new(sink), LogFormat::Json).unwrap();
        let engine = Arc::new(engine);
        let state = AppState::new(AppParts {
            engine: engine.clone(),
            fanout,
            metrics,
            codec: model.codec,
            chat: None,
            defaults: SamplingDefaults::from(&model.generation),
            options,
        });
        Arc::new(Server { front: Front::new(state.clone()), state, engine, rig })
    }

    /// Serves on a socket: its address, the signal line, and how it ended.
    pub async fn listen(&self) -> (String, mpsc::Sender<()>, tokio::task::JoinHandle<Ended>) {
        let args = FrontendArgs { host: Some("127.0.0.1".into()), port: 0, ..FrontendArgs::default() };
        let listener = server::http::bind(&args).await.unwrap();
        let address = listener.url().strip_prefix("http://").unwrap().to_owned();
        let (signal, signals) = mpsc::channel(2);
        let served = tokio::spawn(server::http::serve(listener, self.state.clone(), signals));
        (address, signal, served)
    }

    pub async fn send(&self, request: Request<Body>) -> Answer {
        let (parts, body) = self.front.answer(request, "test").await.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body = String::from_utf8(bytes.to_vec()).unwrap();
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    pub async fn complete(&self, body: Value) -> Answer {
        self.send(post(&body)).await
    }

    /// Asks for a stream and goes away before it ends.
    pub async fn hang_up(&self, prompt: &str) {
        let body = serde_json::json!({"prompt": prompt, "max_tokens": 100, "stream": true});
        let mut answer = self.front.answer(post(&body), "test").await.into_body();
        let _first = answer.frame().await;
    }

    /// Nothing runs, waits or holds a page.
    pub fn is_idle(&self) -> bool {
        let stats = self.engine.stats();
        let engine = stats.running + stats.waiting == 0 && stats.kv_cache_usage == 0.0;
        engine && self.state.fanout.open_rows() == 0 && self.state.metrics.in_work() == 0
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.rig.mend();
        self.engine.stop();
    }
}

fn post(body: &Value) -> Request<Body> {
    let request = Request::post("/v1/completions").header("content-type", "application/json");
    request.body(body.to_string().into()).unwrap()
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

/// A raw HTTP/1.1 completion request.
pub fn raw_post(body: &Value) -> String {
    let body = body.to_string();
    let length = body.len();
    format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
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
