//! A server over the mock engine, asked in process or through sockets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{HeaderMap, Request};
use http_body_util::BodyExt;
use serde_json::{Map, Value, json};
use server::chat::content::ContentFormatOption;
use server::chat::template::source::{ChatTemplates, TemplateSources, WithTools};
use server::client::EngineClient;
use server::client::mock::bytes::ByteCodec;
use server::client::mock::{MockConfig, MockEngine};
use server::fanout::Fanout;
use server::http::metrics::Metrics;
use server::http::{AppParts, AppState, Ended, Front, HttpOptions};
use server::openai::chat::ChatSetup;
use server::openai::codec::{Codec, Detokenize};
use server::openai::sampling::SamplingDefaults;
use server::text::detokenize::DecodeOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// `<role>content` per message, and an open assistant at the end.
const TEMPLATE: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}\
     {% if tools %}[{{ tools | length }} tools]{% endif %}{% if shout %}!{% endif %}\
     {% if add_generation_prompt %}<assistant>{% endif %}";

pub struct TestServer {
    pub state: AppState,
    pub engine: Arc<MockEngine>,
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

    /// The events of a stream; the last must be `[DONE]` and is left out.
    pub fn events(&self) -> Vec<Value> {
        let mut events: Vec<&str> =
            self.body.split_terminator("\n\n").map(|e| e.strip_prefix("data: ").expect("data: ")).collect();
        assert_eq!(events.pop(), Some("[DONE]"), "{}", self.body);
        events.into_iter().map(|e| serde_json::from_str(e).expect(e)).collect()
    }
}

impl TestServer {
    pub fn new() -> TestServer {
        Self::with(MockConfig::new(256), HttpOptions::default())
    }

    pub fn with(config: MockConfig, options: HttpOptions) -> TestServer {
        Self::with_defaults(config, options, SamplingDefaults::default())
    }

    pub fn with_defaults(
        config: MockConfig,
        mut options: HttpOptions,
        defaults: SamplingDefaults,
    ) -> TestServer {
        options.frontend.disable_access_log = true;
        options.log_stats = false;
        let metrics = Arc::new(Metrics::new(config.info.max_model_len));
        let (fanout, sink) = Fanout::new(metrics.clone());
        let engine = Arc::new(MockEngine::start(config, Box::new(sink)).unwrap());
        let state = AppState::new(AppParts {
            engine: engine.clone() as Arc<dyn EngineClient>,
            fanout,
            metrics,
            codec: Arc::new(FragileCodec),
            chat: Some(chat_setup()),
            defaults,
            options,
        });
        TestServer { front: Front::new(state.clone()), state, engine }
    }

    /// Answers requests in process.
    pub fn start(self) -> TestServer {
        tokio::spawn(self.state.fanout.clone().run());
        self
    }

    /// Serves on a socket: its address, the signal line, and how it ended.
    pub async fn listen(&self) -> (String, mpsc::Sender<()>, tokio::task::JoinHandle<Ended>) {
        let args =
            server::cli::FrontendArgs { host: Some("127.0.0.1".into()), port: 0, ..Default::default() };
        let listener = server::http::bind(&args).await.unwrap();
        let address = listener.url().strip_prefix("http://").unwrap().to_string();
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

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_bytes(path, body.to_string()).await
    }

    pub async fn post_bytes(&self, path: &str, body: impl Into<Body>) -> Answer {
        let request = Request::post(path).header("content-type", "application/json");
        self.send(request.body(body.into()).unwrap()).await
    }

    pub async fn complete(&self, body: Value) -> Answer {
        self.post("/v1/completions", &body).await
    }

    pub async fn chat(&self, body: Value) -> Answer {
        self.post("/v1/chat/completions", &body).await
    }
}

/// [`ByteCodec`] that panics where a bug in text handling would: at the text `PANIC` and at the token for `\u{7}`.
struct FragileCodec;

struct FragileText(Box<dyn Detokenize>);

impl Codec for FragileCodec {
    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, String> {
        assert!(!text.contains("PANIC"), "a planted panic");
        ByteCodec.encode(text, add_special_tokens)
    }
    fn decode(&self, ids: &[u32], options: DecodeOptions) -> String {
        ByteCodec.decode(ids, options)
    }
    fn token(&self, id: u32) -> Option<String> {
        ByteCodec.token(id)
    }
    fn token_bytes(&self, id: u32) -> Vec<u8> {
        ByteCodec.token_bytes(id)
    }
    fn detokenizer(&self, prompt: &[u32], options: DecodeOptions) -> Box<dyn Detokenize> {
        Box::new(FragileText(ByteCodec.detokenizer(prompt, options)))
    }
}

impl Detokenize for FragileText {
    fn push(&mut self, id: u32, out: &mut String) {
        assert_ne!(id, 7, "a planted panic");
        self.0.push(id, out);
    }
    fn finish(&mut self, out: &mut String) {
        self.0.finish(out);
    }
}

fn chat_setup() -> ChatSetup {
    let sources = TemplateSources::of_flag(TEMPLATE).unwrap();
    let templates = ChatTemplates::compile(&sources, &Map::new()).unwrap();
    let content_format = ContentFormatOption::Auto.resolve(templates.get(WithTools::No));
    ChatSetup { templates: Arc::new(templates), content_format, special_tokens: Map::new() }
}

/// `base` with the fields of `extra`.
pub fn merged(mut base: Value, extra: &Value) -> Value {
    base.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    base
}

/// Waits until `done`, for at most ten seconds.
pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what} did not happen");
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

/// Checks the error envelope.
pub fn check_error(answer: &Answer, status: u16, kind: &str, param: Option<&str>) {
    let json = answer.json();
    let error = &json["error"];
    assert_eq!(answer.status, status, "{json}");
    assert_eq!(error["code"], status, "{json}");
    assert_eq!(error["type"], kind, "{json}");
    assert_eq!(error["param"], param.map_or(Value::Null, |p| json!(p)), "{json}");
    assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()), "{json}");
}
