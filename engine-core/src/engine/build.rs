//! From a backend, a configuration and weights to a running engine: sizes everything, loads, starts the thread.

use std::sync::Arc;

use super::build_draft::DraftBuild;
use super::core::{Engine, LoopState};
use super::handle::{EngineHandle, EngineState, QueueLimits, Shared};
use super::types::OutputSink;
use crate::backend::trace::{Log, Trace};
use crate::backend::{Backend, CaptureLevel, Control, Invariance, KvGroupSpec, KvKind, MemInfo, StepCaps};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::kv::{GroupKind, GroupSpec, KvConfig, PrefixCaching, prefix};
use crate::layers::decoder::{Decoder, DecoderPlan};
use crate::loader::source::{DummySource, WeightLoader, WeightSource};
use crate::models;
use crate::runner::{Runner, RunnerConfig};
use crate::scheduler::{ChunkedPrefill, Scheduler, SchedulerConfig, SchedulingPolicy};
use crate::speculate::ngram::NgramDrafter;
use crate::speculate::{DraftSource, Drafter, Method, Speculation};
use crate::tensor::DType;

/// Everything an operator decides about an engine.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Type of activations and weights; `None` takes the checkpoint's, as far as the device has it.
    pub dtype: Option<DType>,
    /// `None` follows `dtype`.
    pub kv_dtype: Option<DType>,
    /// `None` takes the configuration's.
    pub max_model_len: Option<MaxModelLen>,
    pub max_num_seqs: Option<u32>,
    pub max_num_batched_tokens: Option<u32>,
    /// Tokens a page; `None` takes the device's preference.
    pub block_size: Option<u32>,
    pub kv_cache_memory_bytes: Option<u64>,
    /// Share of the device's memory that weights, buffers and KV cache may take together, what other programs use
    /// counted (`--gpu-memory-utilization`). `None`: the KV cache takes half of what is free.
    pub memory_utilization: Option<f64>,
    /// Exactly this many usable pages (`--num-gpu-blocks-override`), whatever the memory says.
    pub kv_pages: Option<u32>,
    pub prefix_caching: PrefixCaching,
    pub chunked_prefill: ChunkedPrefill,
    pub policy: SchedulingPolicy,
    pub capture: CaptureLevel,
    pub capture_sizes: Option<Vec<u32>>,
    /// Steps in flight: 2, or 1 with `--no-async-scheduling`.
    pub steps_in_flight: usize,
    /// Most best ids per position.
    pub max_logprobs: u32,
    pub queue: QueueLimits,
    pub loader_threads: u32,
    /// `--batch-invariant`: whether a row's bits may depend on its neighbours.
    pub invariance: Invariance,
    /// `None`: one token a step.
    pub speculation: Option<Speculation>,
}

/// The context length asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxModelLen {
    Tokens(u32),
    /// As long as the memory allows.
    Auto,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            dtype: None,
            kv_dtype: None,
            max_model_len: None,
            max_num_seqs: None,
            max_num_batched_tokens: None,
            block_size: None,
            kv_cache_memory_bytes: None,
            memory_utilization: None,
            kv_pages: None,
            prefix_caching: PrefixCaching::AllPages,
            chunked_prefill: ChunkedPrefill::On { long_prefill_token_threshold: None },
            policy: SchedulingPolicy::Fcfs,
            capture: CaptureLevel::Any,
            capture_sizes: None,
            steps_in_flight: 2,
            max_logprobs: 20,
            queue: QueueLimits { requests: crate::limits::MAX_QUEUED_REQUESTS, tokens: None },
            loader_threads: 2,
            invariance: Invariance::None,
            speculation: None,
        }
    }
}

/// What start-up found and decided, for the start-up table.
#[derive(Clone, Debug)]
pub struct StartupReport {
    pub device: String,
    pub device_name: String,
    pub architecture: &'static str,
    pub dtype: DType,
    pub kv_dtype: DType,
    pub weight_bytes: u64,
    pub arena_bytes: u64,
    pub kv_bytes: u64,
    pub kv_tokens: u64,
    pub max_model_len: u32,
    pub max_num_seqs: u32,
    pub max_num_batched_tokens: u32,
    pub block_size: u32,
    pub kv_pages: u32,
    pub vocab_size: u32,
    pub kv_groups: u32,
}

impl StartupReport {
    /// How many requests of the full context length fit into the KV cache at once.
    pub fn full_length_requests(&self) -> f64 {
        self.kv_tokens as f64 / f64::from(self.max_model_len)
    }
}

/// A running engine.
pub struct Running {
    pub handle: EngineHandle,
    pub report: StartupReport,
    /// The stream's watchdog handle.
    pub control: Arc<dyn Control>,
    pub thread: std::thread::JoinHandle<()>,
}

/// Sizes decided before a byte of weights is read.
pub(super) struct Sizes {
    pub dtype: DType,
    pub kv_dtype: DType,
    pub page_tokens: u32,
    pub max_num_seqs: u32,
    pub tokens: u32,
    pub groups: Vec<KvGroupSpec>,
}

impl Sizes {
    /// Bytes of a page of the pool that all groups share.
    pub(super) fn page_bytes(&self) -> u64 {
        self.groups.iter().map(KvGroupSpec::page_bytes).max().unwrap_or(1)
    }
}

/// Builds and starts an engine. `progress` is told the bytes of each weight loaded.
///
/// # Errors
/// An unknown architecture, settings that contradict each other, an unreadable checkpoint, too little memory.
pub fn start(
    backend: Arc<dyn Backend>,
    config: &ModelConfig,
    source: &dyn WeightSource,
    options: &EngineOptions,
    sink: Box<dyn OutputSink>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Running> {
    options.speculation.as_ref().map_or(Ok(()), Speculation::check)?;
    let family = models::find(config)?;
    let plan = DecoderPlan::new(config, (family.spec)(config)?);
    let sizes = sizes(&*backend, config, &plan, options)?;
    let wanted_len = match options.max_model_len {
        Some(MaxModelLen::Tokens(n)) => config.max_model_len(Some(n))?,
        Some(MaxModelLen::Auto) | None => config.max_model_len(None)?,
    };
    let loader = WeightLoader {
        backend: &*backend,
        source,
        act_dtype: sizes.dtype,
        threads: options.loader_threads,
        progress,
    };
    let mut caps = caps(config, &plan, &sizes, options, wanted_len);
    let traced = trace(&backend, config, &plan, &sizes, &caps)?;
    caps.arena_bytes = traced.arena_bytes;
    let mut draft = match options.speculation.as_ref().map(|s| &s.method) {
        Some(Method::Model(model)) => {
            Some(DraftBuild::new(&backend, model, config, &sizes, &caps, options, wanted_len)?)
        }
        _ => None,
    };
    // The trace is of plain weights: it says nothing of quantized ones, which fail as they are loaded.
    if source.is_plain() {
        let drafted_bytes = draft.as_ref().map_or(0, DraftBuild::traced_weight_bytes);
        check_weights(&*backend, traced.weight_bytes + drafted_bytes, sizes.dtype)?;
    }
    let model = Arc::new(Decoder::load(&loader, config, &plan, wanted_len)?);
    let drafted_bytes = draft.as_mut().map_or(Ok(0), |d| d.load(&*backend, options, progress))?;
    let kv = kv_pages(&*backend, &sizes, options, &mut caps, wanted_len, draft.as_ref())?;
    let max_model_len = kv.max_model_len;
    let scheduler = scheduler(&sizes, options, &kv)?;
    let (handle, shared, inbox) = EngineHandle::new(options.queue, max_model_len);
    let runner_config = runner_config(&*backend, &sizes, options, &caps, &kv);
    let drafter = drafter(&*backend, options, draft, &runner_config)?;
    let weight_bytes = model.weight_bytes() + drafted_bytes;
    let report = report(&*backend, family.architecture, config, &sizes, &caps, &kv, weight_bytes);
    let runner = Runner::new(&*backend, model, runner_config)?;
    let control = runner.control();
    let engine = Engine {
        scheduler,
        runner,
        drafter,
        inbox,
        shared: shared.clone(),
        sink,
        depth: options.steps_in_flight.clamp(1, crate::limits::MAX_STEPS_IN_FLIGHT),
        state: LoopState::default(),
    };
    let thread = spawn(engine, shared)?;
    Ok(Running { handle, report, control, thread })
}

/// Runs the engine on a thread of its own.
fn spawn(engine: Engine, shared: Arc<Shared>) -> Result<std::thread::JoinHandle<()>> {
    let body = move || {
        // The engine answers for panics of its steps itself; this one is for a panic while it does so. The sink is
        // dropped then, which fails whatever is still open.
        let run = std::panic::AssertUnwindSafe(|| engine.run());
        if std::panic::catch_unwind(run).is_err() {
            shared.set_state(EngineState::Lost);
        }
    };
    let builder = std::thread::Builder::new().name("engine".to_owned());
    builder.spawn(body).map_err(|e| Error::Io { path: "engine thread".to_owned(), reason: e.to_string() })
}

fn runner_config(
    backend: &dyn Backend,
    sizes: &Sizes,
    options: &EngineOptions,
    caps: &StepCaps,
    kv: &KvSize,
) -> RunnerConfig {
    RunnerConfig {
        caps: caps.clone(),
        dtype: sizes.dtype,
        kv_dtype: sizes.kv_dtype,
        page_tokens: sizes.page_tokens,
        kv_pages: kv.pages,
        capture: options.capture.min(backend.info().capture),
        capture_sizes: options.capture_sizes.clone(),
    }
}

/// The drafter that is asked for, beside a target that runs like this.
fn drafter(
    backend: &dyn Backend,
    options: &EngineOptions,
    draft: Option<DraftBuild<'_>>,
    target: &RunnerConfig,
) -> Result<Option<Drafter>> {
    let Some(speculation) = &options.speculation else { return Ok(None) };
    let source = match (&speculation.method, draft) {
        (Method::Ngram { min, max }, _) => {
            DraftSource::Ngram(NgramDrafter::new(target.caps.rows, speculation.tokens, *min, *max))
        }
        (Method::Model(_), Some(draft)) => DraftSource::Model(Box::new(draft.start(backend, target)?)),
        (Method::Model(_), None) => return Ok(None),
    };
    Ok(Some(Drafter::new(speculation, source)))
}

pub(super) fn sizes(
    backend: &dyn Backend,
    config: &ModelConfig,
    plan: &DecoderPlan,
    options: &EngineOptions,
) -> Result<Sizes> {
    let info = backend.info();
    let dtype = dtype(backend, config, options)?;
    let kv_dtype = options.kv_dtype.unwrap_or(dtype);
    if !info.kv_dtypes.contains(&kv_dtype) {
        return Err(Error::Unsupported(format!(
            "--kv-cache-dtype {kv_dtype}: {} has {:?}",
            info.id,
            info.kv_dtypes.iter().map(|d| d.name()).collect::<Vec<_>>()
        )));
    }
    let page_tokens = options.block_size.unwrap_or(info.page_tokens[0]);
    if !info.page_tokens.contains(&page_tokens) {
        return Err(Error::Config(format!(
            "--block-size {page_tokens}: {} has pages of {:?} tokens",
            info.id, info.page_tokens
        )));
    }
    let max_num_seqs = options.max_num_seqs.unwrap_or(info.default_num_seqs);
    let tokens = options.max_num_batched_tokens.unwrap_or(info.default_batched_tokens.max(max_num_seqs));
    Ok(Sizes {
        dtype,
        kv_dtype,
        page_tokens,
        max_num_seqs,
        tokens,
        groups: plan.kv_groups(kv_dtype, page_tokens),
    })
}

/// The operator's type, else the checkpoint's if the device has it, else the device's best.
fn dtype(backend: &dyn Backend, config: &ModelConfig, options: &EngineOptions) -> Result<DType> {
    let info = backend.info();
    let Some(dtype) = options.dtype else {
        let own = config.dtype.filter(|d| info.dtypes.contains(d));
        return Ok(own.unwrap_or(info.dtypes[0]));
    };
    if info.dtypes.contains(&dtype) {
        return Ok(dtype);
    }
    let known: Vec<&str> = info.dtypes.iter().map(|d| d.name()).collect();
    Err(Error::Unsupported(format!("--dtype {dtype}: {} runs {}", info.id, known.join(", "))))
}

fn caps(c: &ModelConfig, plan: &DecoderPlan, sizes: &Sizes, options: &EngineOptions, len: u32) -> StepCaps {
    StepCaps {
        rows: sizes.max_num_seqs,
        tokens: sizes.tokens,
        logit_rows: crate::limits::LOGIT_ROWS_CHUNK,
        pages_per_row: len.div_ceil(sizes.page_tokens),
        groups: plan.layout().groups.len() as u32,
        vocab: c.vocab_size,
        logprobs: options.max_logprobs.min(c.vocab_size),
        drafts: options.speculation.as_ref().map_or(0, |s| s.tokens),
        arena_bytes: 0,
        invariance: options.invariance,
    }
}

/// The arena's height in the largest step and the bytes of all weights, found by tracing before a byte of weights is
/// read. An op that the device does not have ends start-up here.
pub(super) fn trace(
    backend: &Arc<dyn Backend>,
    config: &ModelConfig,
    plan: &DecoderPlan,
    sizes: &Sizes,
    caps: &StepCaps,
) -> Result<Log> {
    let trace = Trace::for_backend(backend.clone());
    let source = DummySource { seed: 0, std: 0.0, dtype: sizes.dtype };
    let loader = WeightLoader {
        backend: &trace,
        source: &source,
        act_dtype: sizes.dtype,
        threads: 1,
        progress: &|_| {},
    };
    let model = Arc::new(Decoder::load(&loader, config, plan, 1)?);
    let runner_config = RunnerConfig {
        caps: caps.clone(),
        dtype: sizes.dtype,
        kv_dtype: sizes.kv_dtype,
        page_tokens: sizes.page_tokens,
        kv_pages: 1,
        capture: CaptureLevel::Never,
        capture_sizes: None,
    };
    let unsupported = |e: Error| match e {
        Error::Unsupported(why) => Error::Unsupported(format!(
            "{} cannot run this model in {}: {why}",
            backend.info().id,
            sizes.dtype
        )),
        other => other,
    };
    Runner::new(&trace, model, runner_config)?.enqueue_largest().map_err(unsupported)?;
    Ok(trace.take())
}

/// Weights that cannot fit are refused before a byte of them is read, not after minutes of loading.
fn check_weights(backend: &dyn Backend, wanted_bytes: u64, dtype: DType) -> Result<()> {
    let free_bytes = backend.memory()?.free_bytes;
    if wanted_bytes <= free_bytes {
        return Ok(());
    }
    let smaller = match dtype {
        DType::F32 => "give --dtype bfloat16 (half the bytes), choose a smaller model,",
        _ => "choose a smaller model",
    };
    let missing_bytes = wanted_bytes - free_bytes;
    Err(Error::OutOfMemory {
        what: format!("loading the weights in {dtype}"),
        wanted_bytes,
        free_bytes,
        hint: format!("{missing_bytes} bytes are missing: {smaller} or a machine with more memory"),
    })
}

/// The KV cache as decided.
struct KvSize {
    pages: u32,
    /// The draft model's share among them.
    page_bytes: u64,
    max_model_len: u32,
    /// Tokens the whole pool holds.
    tokens: u64,
    groups: Vec<GroupSpec>,
}

pub(super) fn group_spec(g: &KvGroupSpec) -> GroupSpec {
    let kind = match g.kind {
        KvKind::Window { tokens } => GroupKind::Window { tokens },
        _ => GroupKind::Full,
    };
    GroupSpec { kind, page_tokens: g.page_tokens }
}

/// Decides the number of pages: exactly what was asked for, else what the bytes asked for or half of what is free
/// hold, never more than every row at full length could use. One request of full length must fit.
fn kv_pages(
    backend: &dyn Backend,
    sizes: &Sizes,
    options: &EngineOptions,
    caps: &mut StepCaps,
    wanted_len: u32,
    draft: Option<&DraftBuild<'_>>,
) -> Result<KvSize> {
    let groups: Vec<GroupSpec> = sizes.groups.iter().map(group_spec).collect();
    let page_bytes = sizes.page_bytes() + draft.map_or(0, DraftBuild::page_bytes);
    let memory = backend.memory()?;
    let free = memory.free_bytes;
    let fixed = caps.arena_bytes
        + backend.overhead_bytes(caps)
        + draft.map_or(0, |d| d.arena_bytes() + backend.overhead_bytes(d.caps()));
    let asked = options.kv_pages.map(|pages| (u64::from(pages) + 1) * page_bytes);
    let budget = asked
        .or(options.kv_cache_memory_bytes)
        .unwrap_or_else(|| unasked_budget(memory, fixed, options.memory_utilization));
    let chunk = sizes.tokens;
    let need = |len: u32| groups.iter().map(|g| u64::from(g.most_pages(len, chunk))).sum::<u64>();
    let fits = budget / page_bytes;
    let mut len = wanted_len;
    if need(len) + 1 > fits {
        if options.max_model_len != Some(MaxModelLen::Auto) {
            return Err(too_small(len, need(len) + 1, page_bytes, budget, options));
        }
        len = longest(|l| need(l) < fits, wanted_len);
        if len < 2 {
            return Err(too_small(2, need(2) + 1, page_bytes, budget, options));
        }
    }
    let useful = need(len) * u64::from(sizes.max_num_seqs) + 1;
    let pages = if asked.is_some() { fits } else { fits.min(useful) }.min(u64::from(u32::MAX)) as u32;
    check_free(u64::from(pages) * page_bytes, free.saturating_sub(fixed), options)?;
    caps.pages_per_row = len.div_ceil(sizes.page_tokens);
    let per_page = u64::from(sizes.page_tokens) / groups.len().max(1) as u64;
    Ok(KvSize {
        pages,
        page_bytes,
        max_model_len: len,
        tokens: u64::from(pages - 1) * per_page.max(1),
        groups,
    })
}

/// Bytes of the KV cache when nobody gave its size: what the allowed share of memory leaves after what is in use and
/// `fixed` bytes to come, or half of what is free.
fn unasked_budget(memory: MemInfo, fixed: u64, utilization: Option<f64>) -> u64 {
    let Some(share) = utilization else { return memory.free_bytes.saturating_sub(fixed) / 2 };
    let used = memory.total_bytes.saturating_sub(memory.free_bytes);
    ((memory.total_bytes as f64 * share) as u64).saturating_sub(used + fixed)
}

/// The largest length up to `most` that fits.
fn longest(fits: impl Fn(u32) -> bool, most: u32) -> u32 {
    let (mut low, mut high) = (0, most + 1);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle) { low = middle } else { high = middle }
    }
    low
}

fn too_small(len: u32, pages: u64, page_bytes: u64, budget: u64, options: &EngineOptions) -> Error {
    let wanted_bytes = pages * page_bytes;
    let hint = match (options.kv_pages, options.kv_cache_memory_bytes) {
        (Some(_), _) => {
            "raise --num-gpu-blocks-override or lower --max-model-len (or give --max-model-len auto)"
        }
        (None, Some(_)) => {
            "raise --kv-cache-memory-bytes or lower --max-model-len (or give --max-model-len auto)"
        }
        (None, None) if options.memory_utilization.is_some() => {
            "raise --gpu-memory-utilization, lower --max-model-len (or give --max-model-len auto) or \
             --max-num-batched-tokens, or end other programs on this device"
        }
        (None, None) => {
            "lower --max-model-len (or give --max-model-len auto), or set --kv-cache-memory-bytes"
        }
    };
    Error::OutOfMemory {
        what: format!("the KV cache of one request of {len} tokens"),
        wanted_bytes,
        free_bytes: budget,
        hint: format!("{} bytes are missing: {hint}", wanted_bytes.saturating_sub(budget)),
    }
}

/// A pool that was asked for by size must be there: else the first long request ends the process.
fn check_free(wanted_bytes: u64, free_bytes: u64, options: &EngineOptions) -> Result<()> {
    let flag = match (options.kv_pages, options.kv_cache_memory_bytes) {
        (Some(_), _) => "--num-gpu-blocks-override",
        (None, Some(_)) => "--kv-cache-memory-bytes",
        (None, None) => return Ok(()),
    };
    if wanted_bytes <= free_bytes {
        return Ok(());
    }
    Err(Error::OutOfMemory {
        what: "the KV cache".to_owned(),
        wanted_bytes,
        free_bytes,
        hint: format!("{} bytes are missing: lower {flag}", wanted_bytes - free_bytes),
    })
}

fn scheduler(sizes: &Sizes, options: &EngineOptions, kv: &KvSize) -> Result<Scheduler> {
    let config = SchedulerConfig {
        chunked_prefill: options.chunked_prefill,
        policy: options.policy,
        ..SchedulerConfig::new(sizes.max_num_seqs, sizes.tokens, kv.max_model_len)
    };
    let kv = KvConfig {
        groups: kv.groups.clone(),
        pages: kv.pages,
        prefix_caching: options.prefix_caching,
        hash_key: prefix::random_key(),
    };
    Scheduler::new(config, kv)
}

fn report(
    backend: &dyn Backend,
    architecture: &'static str,
    config: &ModelConfig,
    sizes: &Sizes,
    caps: &StepCaps,
    kv: &KvSize,
    weight_bytes: u64,
) -> StartupReport {
    let info = backend.info();
    StartupReport {
        device: info.id.clone(),
        device_name: format!("{} ({}, {} threads)", info.name, info.arch, info.units),
        architecture,
        dtype: sizes.dtype,
        kv_dtype: sizes.kv_dtype,
        weight_bytes,
        arena_bytes: caps.arena_bytes,
        kv_bytes: u64::from(kv.pages) * kv.page_bytes,
        kv_tokens: kv.tokens,
        max_model_len: kv.max_model_len,
        max_num_seqs: sizes.max_num_seqs,
        max_num_batched_tokens: sizes.tokens,
        block_size: sizes.page_tokens,
        kv_pages: kv.pages,
        vocab_size: config.vocab_size,
        kv_groups: caps.groups,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_memory_counts_what_is_in_use() {
        let memory = MemInfo { total_bytes: 1_000, free_bytes: 700 };
        assert_eq!(unasked_budget(memory, 100, None), 300);
        assert_eq!(unasked_budget(memory, 100, Some(0.9)), 500);
        assert_eq!(unasked_budget(memory, 100, Some(0.3)), 0);
    }
}
