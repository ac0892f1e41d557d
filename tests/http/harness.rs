//! A server over the mock engine.

use std::ops::Deref;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use server::chat::content::ContentFormatOption;
use server::chat::template::source::{ChatTemplates, TemplateSources, WithTools};
use server::client::EngineClient;
use server::client::mock::bytes::ByteCodec;
use server::client::mock::{MockConfig, MockEngine};
use server::fanout::Fanout;
use server::http::metrics::Metrics;
use server::http::{AppParts, AppState, HttpOptions};
use server::openai::chat::ChatSetup;
use server::openai::codec::{Codec, Detokenize};
use server::openai::sampling::SamplingDefaults;
use server::text::detokenize::DecodeOptions;

pub use tests::http::{Answer, HttpServer, merged, raw, raw_post, until};

/// `<role>content` per message, and an open assistant at the end.
const TEMPLATE: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}\
     {% if tools %}[{{ tools | length }} tools]{% endif %}{% if shout %}!{% endif %}\
     {% if add_generation_prompt %}<assistant>{% endif %}";

pub struct TestServer {
    http: HttpServer,
    pub engine: Arc<MockEngine>,
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
        let metrics = Arc::new(Metrics::new());
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
        TestServer { http: HttpServer::new(state), engine }
    }

    /// Answers requests in process.
    pub fn start(self) -> TestServer {
        self.run();
        self
    }
}

impl Deref for TestServer {
    type Target = HttpServer;
    fn deref(&self) -> &HttpServer {
        &self.http
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
    fn longest_token_chars(&self) -> Option<usize> {
        ByteCodec.longest_token_chars()
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
