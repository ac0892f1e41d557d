//! The HTTP server over an engine without a model, to measure the server alone:
//!
//! ```text
//! cargo run --release -p server --example mock_serve -- [PORT [STEP_MICROSECONDS]]
//! ```

use std::sync::Arc;
use std::time::Duration;

use server::cli::FrontendArgs;
use server::client::mock::bytes::ByteCodec;
use server::client::mock::{MockConfig, MockEngine};
use server::fanout::Fanout;
use server::http::metrics::Metrics;
use server::http::{AppParts, AppState, HttpOptions};
use server::openai::sampling::SamplingDefaults;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words = std::env::args().skip(1);
    let port: u16 = words.next().map_or(Ok(8000), |w| w.parse())?;
    let step_us: u64 = words.next().map_or(Ok(0), |w| w.parse())?;
    let config = MockConfig { step_time: Duration::from_micros(step_us), ..MockConfig::new(32_768) };
    let metrics = Arc::new(Metrics::new());
    let (fanout, sink) = Fanout::new(metrics.clone());
    let engine = Arc::new(MockEngine::start(config, Box::new(sink))?);
    let frontend = FrontendArgs {
        host: Some("127.0.0.1".into()),
        port,
        disable_access_log: true,
        ..FrontendArgs::default()
    };
    let listener = server::http::bind(&frontend).await?;
    println!("listening on {}", listener.url());
    let state = AppState::new(AppParts {
        engine,
        fanout,
        metrics,
        codec: Arc::new(ByteCodec),
        chat: None,
        defaults: SamplingDefaults::default(),
        options: HttpOptions { frontend, ..HttpOptions::default() },
    });
    let ended = server::http::serve(listener, state, server::http::signals()?).await;
    println!("{ended:?}");
    Ok(())
}
