//! The whole server over the engine loop and a rigged do-nothing device.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use engine_core::backend::Backend;
use engine_core::config::GenerationConfig;
use serde_json::Map;
use server::cli::{EngineArgs, LoadFormat, LogFormat};
use server::client::EngineClient;
use server::client::mock::bytes::ByteCodec;
use server::engine::ThreadEngine;
use server::fanout::Fanout;
use server::http::metrics::Metrics;
use server::http::{AppParts, AppState, HttpOptions};
use server::model::OpenModel;
use server::openai::codec::Codec;
use server::openai::sampling::SamplingDefaults;

use crate::http::HttpServer;
use crate::null;
use crate::rigged::{Rig, Rigged};

/// See the module. Dropping it mends the device and stops the engine.
pub struct Server {
    http: HttpServer,
    pub engine: Arc<ThreadEngine>,
    pub rig: Arc<Rig>,
}

impl Server {
    /// A server that answers in process: a model of this context length.
    pub fn start(args: EngineArgs, options: HttpOptions, max_len: u32) -> Arc<Server> {
        let server = Self::build(args, options, max_len, Arc::new(ByteCodec));
        server.run();
        server
    }

    /// The same on a device that takes a millisecond for a step: what comes together runs together.
    pub fn paced(args: EngineArgs, options: HttpOptions, max_len: u32) -> Arc<Server> {
        let device = null::paced(Duration::from_millis(1));
        let server = Self::on(device, args, options, max_len, Arc::new(ByteCodec));
        server.run();
        server
    }

    /// As [`Server::start`], not yet running: for [`HttpServer::listen`], or with another tokenizer.
    pub fn build(args: EngineArgs, options: HttpOptions, max_len: u32, codec: Arc<dyn Codec>) -> Arc<Server> {
        Self::on(null::backend(), args, options, max_len, codec)
    }

    fn on(
        device: Arc<dyn Backend>,
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
            gguf: None,
            dir: "/nowhere".into(),
            names: vec!["null".into()],
            root: "null".into(),
            config: null::config(max_len),
            generation: GenerationConfig::from_json(&Map::new()).unwrap(),
            codec,
            chat: None,
        };
        let (backend, rig) = Rigged::new(device);
        let metrics = Arc::new(Metrics::new());
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
        Arc::new(Server { http: HttpServer::new(state), engine, rig })
    }

    /// Nothing runs, waits or holds a page.
    pub fn is_idle(&self) -> bool {
        let stats = self.engine.stats();
        let engine = stats.running + stats.waiting == 0 && stats.kv_cache_usage == 0.0;
        engine && self.state.fanout.open_rows() == 0 && self.state.metrics.in_work() == 0
    }
}

impl Deref for Server {
    type Target = HttpServer;
    fn deref(&self) -> &HttpServer {
        &self.http
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.rig.mend();
        self.engine.stop();
    }
}
