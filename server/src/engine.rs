//! From flags to a running engine, and the engine as the HTTP side sees it.

use std::sync::Arc;
use std::time::Duration;

use engine_core::backend::{Backend, CaptureLevel, Invariance};
use engine_core::engine::build::{MaxModelLen as CoreLen, Running};
use engine_core::engine::types::{OutputSink, Refused, Request, RequestId};
use engine_core::engine::{EngineHandle, EngineOptions, EngineState, QueueLimits, StartupReport};
use engine_core::kv::PrefixCaching;
use engine_core::scheduler::{ChunkedPrefill, SchedulingPolicy as CorePolicy};

use crate::cli::progress::Progress;
use crate::cli::{EngineArgs, LogFormat, MaxModelLen, SchedulingPolicy};
use crate::client::{EngineClient, EngineHealth, EngineInfo, EngineStats};
use crate::device::{self, DeviceOptions};
use crate::model::{OpenModel, StartError};
use crate::speculation::speculation;

/// The engine thread as an [`EngineClient`].
pub struct ThreadEngine {
    handle: EngineHandle,
    info: EngineInfo,
    pub report: StartupReport,
}

/// Loads the weights and starts the engine thread, which delivers to `sink`.
///
/// # Errors
/// Unknown architecture or device, damaged weights, too little memory: in one sentence.
pub fn start(
    model: &OpenModel,
    args: &EngineArgs,
    sink: Box<dyn OutputSink>,
    log: LogFormat,
) -> Result<ThreadEngine, StartError> {
    let backend = device::open(args.device, DeviceOptions::of(args))?;
    start_on(backend, model, args, sink, log)
}

/// Share of a GPU's memory to use when `--gpu-memory-utilization` is not given.
const MEMORY_UTILIZATION: f64 = 0.92;

/// [`start`] on a device that is open already.
///
/// # Errors
/// Those of [`start`], but for the device.
pub fn start_on(
    backend: Arc<dyn Backend>,
    model: &OpenModel,
    args: &EngineArgs,
    sink: Box<dyn OutputSink>,
    log: LogFormat,
) -> Result<ThreadEngine, StartError> {
    let gpu = device::is_gpu(&backend);
    if !gpu {
        args.notices_on_cpu().iter().for_each(|notice| tracing::warn!("{notice}"));
    }
    let threads = args.threads.unwrap_or_else(available_threads);
    let mut options = options(args, model.config.vocab_size, threads);
    options.memory_utilization = gpu.then(|| args.gpu_memory_utilization.unwrap_or(MEMORY_UTILIZATION));
    options.speculation = speculation(args, log)?;
    let weights = model.weights(args)?;
    let bytes =
        weights.total_bytes() + options.speculation.as_ref().map_or(0, |drafts| drafts.weight_bytes());
    let bar = Progress::bytes("Loading weights", bytes, log);
    let running = engine_core::engine::start(backend, &model.config, &*weights, &options, sink, &|bytes| {
        bar.advance(bytes);
    })?;
    bar.finish();
    let Running { handle, report, .. } = running;
    let info = info(model, args, &report, options.speculation.map(|s| s.tokens));
    Ok(ThreadEngine { handle, info, report })
}

impl ThreadEngine {
    /// Steps that ended since the start.
    pub fn steps(&self) -> u64 {
        self.handle.figures().last_step.steps
    }

    /// Ends the engine thread; open requests fail as shutting down.
    pub fn stop(&self) {
        self.handle.stop();
    }
}

impl EngineClient for ThreadEngine {
    fn submit(&self, request: Request) -> Result<(), Refused> {
        self.handle.submit(request)
    }

    fn abort(&self, id: RequestId) {
        self.handle.abort(id);
    }

    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn stats(&self) -> EngineStats {
        let figures = self.handle.figures();
        let s = figures.last_step;
        let usage = f64::from(s.kv_pages_used) / f64::from(s.kv_pages.max(1));
        EngineStats {
            running: u64::from(s.running),
            waiting: (self.handle.queued() as u64).max(u64::from(s.waiting)),
            kv_cache_usage: usage,
            prefix_cache_queries: s.prefix_queries,
            prefix_cache_hits: s.prefix_hits,
            preemptions: s.preemptions,
            drafts: s.drafts,
            iteration_tokens: figures.step_tokens.counts,
            iteration_tokens_sum: figures.step_tokens.sum,
        }
    }

    fn health(&self) -> EngineHealth {
        let failure = match self.handle.state() {
            EngineState::Running => None,
            EngineState::Stopped => Some("the engine has stopped".to_owned()),
            EngineState::Lost => Some("the engine is lost; the log says why".to_owned()),
        };
        let stalled = self.handle.stalled_for();
        let stats = self.stats();
        EngineHealth {
            failure,
            // Figures are published at the end of a step: one that hangs in its first step has none yet.
            open_requests: if stalled.is_some() { (stats.running + stats.waiting).max(1) } else { 0 },
            since_progress: stalled.unwrap_or(Duration::ZERO),
        }
    }
}

fn available_threads() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| n.get() as u32)
}

/// The engine's options from the command line's.
fn options(args: &EngineArgs, vocab: u32, threads: u32) -> EngineOptions {
    let neutral = EngineOptions::default();
    EngineOptions {
        dtype: args.dtype,
        kv_dtype: args.kv_cache_dtype,
        max_model_len: args.max_model_len.map(|len| match len {
            MaxModelLen::Auto => CoreLen::Auto,
            MaxModelLen::Tokens(n) => CoreLen::Tokens(n),
        }),
        max_num_seqs: args.max_num_seqs,
        max_num_batched_tokens: args.max_num_batched_tokens,
        block_size: args.block_size,
        kv_cache_memory_bytes: args.kv_cache_memory_bytes,
        memory_utilization: None,
        kv_pages: args.num_gpu_blocks_override,
        prefix_caching: match args.enable_prefix_caching {
            Some(false) => PrefixCaching::Off,
            _ => PrefixCaching::AllPages,
        },
        chunked_prefill: match (args.enable_chunked_prefill, args.long_prefill_token_threshold) {
            (Some(false), _) => ChunkedPrefill::Off,
            (_, 0) => neutral.chunked_prefill,
            (_, most) => ChunkedPrefill::On { long_prefill_token_threshold: Some(most) },
        },
        policy: match args.scheduling_policy {
            SchedulingPolicy::Fcfs => CorePolicy::Fcfs,
            SchedulingPolicy::Priority => CorePolicy::Priority,
        },
        capture: if args.enforce_eager { CaptureLevel::Never } else { CaptureLevel::Any },
        capture_sizes: capture_sizes(args),
        steps_in_flight: if args.async_scheduling == Some(false) { 1 } else { neutral.steps_in_flight },
        invariance: if args.batch_invariant { Invariance::Batch } else { Invariance::None },
        max_logprobs: args.max_logprobs.unwrap_or(vocab),
        queue: QueueLimits {
            requests: args.max_num_queued_reqs.map_or(neutral.queue.requests, |n| n as usize),
            tokens: args.max_num_queued_tokens.map(|n| n as usize),
        },
        loader_threads: threads,
        speculation: None,
    }
}

fn capture_sizes(args: &EngineArgs) -> Option<Vec<u32>> {
    let most = args.max_cudagraph_capture_size.unwrap_or(u32::MAX);
    let sizes = &args.cudagraph_capture_sizes;
    match (sizes.is_empty(), args.max_cudagraph_capture_size) {
        (true, None) => None,
        (true, Some(most)) => Some((1..=most).collect()),
        (false, _) => Some(sizes.iter().copied().filter(|n| *n <= most).collect()),
    }
}

fn info(
    model: &OpenModel,
    args: &EngineArgs,
    report: &StartupReport,
    draft_tokens: Option<u32>,
) -> EngineInfo {
    let cache = [
        ("block_size", report.block_size.to_string()),
        ("cache_dtype", args.kv_cache_dtype.map_or("auto".to_owned(), |d| d.name().to_owned())),
        ("enable_prefix_caching", python_bool(args.enable_prefix_caching != Some(false))),
        ("gpu_memory_utilization", args.gpu_memory_utilization.unwrap_or(MEMORY_UTILIZATION).to_string()),
        ("num_gpu_blocks", (report.kv_pages - 1).to_string()),
        ("num_gpu_blocks_override", python_int(args.num_gpu_blocks_override)),
        ("kv_offloading_size", "None".to_owned()),
        ("kv_cache_memory_bytes", report.kv_bytes.to_string()),
    ];
    EngineInfo {
        model_names: model.names.clone(),
        model_root: model.root.clone(),
        max_model_len: report.max_model_len,
        vocab_size: model.config.vocab_size,
        eos_token_ids: model.eos_token_ids(),
        max_logprobs: args.max_logprobs,
        scheduling_policy: args.scheduling_policy,
        kv_cache_tokens: report.kv_tokens,
        draft_tokens,
        cache_config: cache.map(|(k, v)| (k.to_owned(), v)).to_vec(),
    }
}

fn python_int(number: Option<u32>) -> String {
    number.map_or("None".to_owned(), |n| n.to_string())
}

fn python_bool(flag: bool) -> String {
    if flag { "True" } else { "False" }.to_owned()
}

/// Keeps the engine alive as long as someone uses it, then stops its thread.
pub struct StopOnDrop(pub Arc<ThreadEngine>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}
