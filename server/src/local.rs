//! A model in this process without a listener: what `serve` starts, but for the sockets. Chat, complete and the
//! in-process benches run on it.

use std::future::Future;
use std::sync::Arc;

use engine_core::config::ModelConfig;
use tokio::runtime::Runtime;

use crate::cli::{EngineArgs, LogFormat};
use crate::engine::{self, StopOnDrop, ThreadEngine};
use crate::fanout::Fanout;
use crate::http::metrics::Metrics;
use crate::http::{AppParts, AppState, HttpOptions};
use crate::model::{OpenModel, StartError, TemplateOptions};
use crate::openai::sampling::SamplingDefaults;

/// A running engine with everything a request needs. Dropping it stops the engine.
pub struct Local {
    /// What HTTP handlers work on; they can be called without a socket.
    pub state: AppState,
    pub engine: Arc<ThreadEngine>,
    pub config: ModelConfig,
    _stop: StopOnDrop,
    runtime: Runtime,
}

impl Local {
    /// Finds the model, loads it and starts its engine.
    ///
    /// # Errors
    /// Whatever keeps it from starting, in one sentence.
    pub fn start(args: &EngineArgs, log: LogFormat) -> Result<Self, StartError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .thread_name("local")
            .build()?;
        let model = OpenModel::open(args, TemplateOptions::default(), log)?;
        let metrics = Arc::new(Metrics::new());
        let (fanout, sink) = Fanout::new(metrics.clone());
        let engine = Arc::new(engine::start(&model, args, Box::new(sink), log)?);
        runtime.spawn(fanout.clone().run());
        let state = AppState::new(AppParts {
            engine: engine.clone(),
            fanout,
            metrics,
            codec: model.codec,
            chat: model.chat,
            defaults: SamplingDefaults::from(&model.generation),
            options: HttpOptions { log_stats: false, ..HttpOptions::default() },
        });
        Ok(Local { state, _stop: StopOnDrop(engine.clone()), engine, config: model.config, runtime })
    }

    /// Runs a future on the runtime that the engine's answers arrive at.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// For tasks that the caller spawns itself.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }
}
