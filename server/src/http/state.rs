//! What every handler shares.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use super::auth::Keys;
use super::cors::Cors;
use super::ids::Numbers;
use super::limits;
use super::metrics::Metrics;
use crate::cli::FrontendArgs;
use crate::client::EngineClient;
use crate::fanout::Fanout;
use crate::openai::chat::ChatSetup;
use crate::openai::codec::Codec;
use crate::openai::sampling::SamplingDefaults;

/// What the serve command puts together.
pub struct AppParts {
    pub engine: Arc<dyn EngineClient>,
    pub fanout: Arc<Fanout>,
    pub metrics: Arc<Metrics>,
    pub codec: Arc<dyn Codec>,
    /// `None`: the model has no chat template, and chat is refused.
    pub chat: Option<ChatSetup>,
    /// Defaults of generation_config.json for what requests leave out.
    pub defaults: SamplingDefaults,
    pub options: HttpOptions,
}

/// Flags of the HTTP side.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    pub frontend: FrontendArgs,
    /// Statistics line every 10 s.
    pub log_stats: bool,
    /// Largest request body.
    pub max_body_bytes: usize,
    /// See [`limits::STALL_LIMIT`].
    pub stall_limit: Duration,
    /// Where the seeds of requests without one come from; `None`: from the operating system.
    pub seed: Option<u64>,
}

impl Default for HttpOptions {
    fn default() -> Self {
        HttpOptions {
            frontend: FrontendArgs::default(),
            log_stats: true,
            max_body_bytes: limits::MAX_BODY_BYTES,
            stall_limit: limits::STALL_LIMIT,
            seed: None,
        }
    }
}

/// Shared by all connections; cheap to clone.
#[derive(Clone)]
pub struct AppState(Arc<App>);

/// See [`AppState`].
pub struct App {
    parts: AppParts,
    pub keys: Keys,
    pub cors: Cors,
    pub started_unix_s: u64,
    pub system_fingerprint: String,
    pub phase: watch::Sender<Phase>,
    /// Time between `: keep-alive` comments on a silent stream; `None`: none are sent.
    pub sse_keep_alive: Option<Duration>,
    /// Seeds of requests without one.
    pub seeds: Numbers,
}

/// Where the server stands between start and end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Takes requests.
    Ready,
    /// SIGTERM came: no new work, open answers go on.
    Draining,
    /// The drain limit passed: open answers were ended.
    Expired,
    /// Connections close.
    Closed,
}

impl AppState {
    /// Ready to serve.
    pub fn new(parts: AppParts) -> AppState {
        let frontend = &parts.options.frontend;
        let app = App {
            keys: Keys::new(&frontend.api_key),
            cors: Cors::new(frontend),
            sse_keep_alive: keep_alive(frontend.sse_keep_alive_interval_s),
            system_fingerprint: format!("pallium-{}", env!("CARGO_PKG_VERSION")),
            started_unix_s: unix_time_s(),
            phase: watch::Sender::new(Phase::Ready),
            seeds: parts.options.seed.map_or_else(Numbers::random, Numbers::new),
            parts,
        };
        AppState(Arc::new(app))
    }
}

impl std::ops::Deref for AppState {
    type Target = App;
    fn deref(&self) -> &App {
        &self.0
    }
}

/// What was put together is there under its own names.
impl std::ops::Deref for App {
    type Target = AppParts;
    fn deref(&self) -> &AppParts {
        &self.parts
    }
}

impl App {
    /// Where the server stands.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// The name that answers report.
    pub fn model_name(&self) -> &str {
        self.engine.info().model_names.first().map_or("", String::as_str)
    }
}

/// 0 is never, and so is a time that no clock reaches.
fn keep_alive(interval_s: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(interval_s).ok().filter(|interval| !interval.is_zero())
}

/// Whole seconds since 1970.
pub fn unix_time_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
