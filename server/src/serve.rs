//! `pallium serve`: model, engine, listener, start-up table, and the server until it is told to end.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::time::Instant;

use engine_core::backend::Backend;
use tokio::runtime::Runtime;

use crate::cli::startup::{Address, StartupTable};
use crate::cli::{LogFormat, ServeArgs};
use crate::device::{self, DeviceOptions};
use crate::engine::{self, StopOnDrop, ThreadEngine};
use crate::fanout::Fanout;
use crate::http::metrics::Metrics;
use crate::http::{self, AppParts, AppState, Ended, HttpOptions, Listener};
use crate::model::{OpenModel, StartError, TemplateOptions};
use crate::openai::sampling::SamplingDefaults;
use crate::run::wants_colour;

/// Serves until SIGTERM or SIGINT, or until the engine is lost.
///
/// # Errors
/// Whatever keeps it from starting, in one sentence.
pub fn serve(args: &ServeArgs, started: Instant) -> Result<Ended, StartError> {
    serve_on(args, started, &|| device::open(args.engine.device, DeviceOptions::of(&args.engine)))
}

/// [`serve`] on a device that the caller opens.
///
/// # Errors
/// Those of [`serve`].
pub fn serve_on(args: &ServeArgs, started: Instant, open: OpenDevice<'_>) -> Result<Ended, StartError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("http").build()?;
    let ended = serve_in(&runtime, args, started, open);
    // Whatever still runs on a blocking thread (a long prompt being tokenized) has nobody to answer.
    runtime.shutdown_background();
    ended
}

/// Opens the device to serve on.
pub type OpenDevice<'a> = &'a dyn Fn() -> engine_core::Result<Arc<dyn Backend>>;

fn serve_in(
    runtime: &Runtime,
    args: &ServeArgs,
    started: Instant,
    open: OpenDevice<'_>,
) -> Result<Ended, StartError> {
    let _entered = runtime.enter();
    if args.frontend.max_num_seqs_per_key.is_some() && args.frontend.api_key.is_empty() {
        let why = "--max-num-seqs-per-key needs --api-key: without keys there is nobody to tell from others";
        return Err(StartError::new(why));
    }
    // The port comes first: a port in use is said before minutes of loading.
    let listener = runtime.block_on(http::bind(&args.frontend))?;
    let log = args.logging.format;
    let template = TemplateOptions {
        template: args.frontend.chat_template.as_deref(),
        format: Some(args.frontend.chat_template_content_format),
    };
    let model = OpenModel::open(&args.engine, template, log)?;
    let metrics = Arc::new(Metrics::new());
    let (fanout, sink) = Fanout::new(metrics.clone());
    let engine = Arc::new(engine::start_on(open()?, &model, &args.engine, Box::new(sink), log)?);
    let _stop = StopOnDrop(engine.clone());
    // Only now: until here nothing is open, and a signal ends the process at once, as it does by default.
    let signals = http::signals()?;
    announce(args, &model, &engine, &listener, started);
    let state = AppState::new(AppParts {
        engine,
        fanout,
        metrics,
        codec: model.codec,
        chat: model.chat,
        defaults: SamplingDefaults::from(&model.generation),
        options: HttpOptions {
            frontend: args.frontend.clone(),
            log_stats: !args.engine.disable_log_stats,
            seed: Some(args.engine.seed),
            ..HttpOptions::default()
        },
    });
    Ok(runtime.block_on(http::serve(listener, state, signals)))
}

fn announce(
    args: &ServeArgs,
    model: &OpenModel,
    engine: &ThreadEngine,
    listener: &Listener,
    started: Instant,
) {
    let r = &engine.report;
    let table = StartupTable {
        model: model.names[0].clone(),
        source: Some(model.root.clone()).filter(|root| *root != model.names[0]),
        device: r.device_name.clone(),
        dtype: r.dtype.name().to_owned(),
        weight_bytes: r.weight_bytes,
        kv_tokens: r.kv_tokens,
        kv_bytes: r.kv_bytes,
        max_model_len: r.max_model_len,
        max_num_seqs: r.max_num_seqs,
        address: match &args.frontend.uds {
            Some(path) => Address::Socket(path.clone()),
            None => Address::Url(listener.url()),
        },
        needs_key: !args.frontend.api_key.is_empty(),
        has_chat: model.chat.is_some(),
        startup_s: started.elapsed().as_secs_f64(),
    };
    match args.logging.format {
        LogFormat::Text => {
            let text = table.render(wants_colour(std::io::stderr().is_terminal()));
            let _ = write!(std::io::stderr(), "{text}");
        }
        LogFormat::Json => tracing::info!(
            model = table.model,
            device = table.device,
            dtype = table.dtype,
            source = table.source,
            weight_bytes = table.weight_bytes,
            kv_tokens = table.kv_tokens,
            kv_bytes = table.kv_bytes,
            max_model_len = table.max_model_len,
            max_num_seqs = table.max_num_seqs,
            full_length_requests = table.full_length_requests(),
            address = table.address.to_string(),
            example = table.curl_line(),
            startup_s = table.startup_s,
            "ready"
        ),
    }
}
