//! The typed arguments of `serve` and of everything that starts an engine in process. They hold what was
//! asked, after ranges were checked; what depends on the model or the device is still `None`.

use std::path::PathBuf;

use engine_core::DType;

use super::choices::{
    ContentFormat, DeviceChoice, LoadFormat, LogFormat, LogLevel, LogprobsMode, SchedulingPolicy,
};

/// A JSON object given on the command line.
pub type JsonMap = serde_json::Map<String, serde_json::Value>;

/// `pallium serve`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServeArgs {
    pub engine: EngineArgs,
    pub frontend: FrontendArgs,
    pub logging: LoggingArgs,
}

/// What an engine is made from: model, loading, cache, scheduler, device. Shared by `serve`, `doctor`, `chat`
/// and `complete` in process, and the in-process benches.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineArgs {
    /// Directory, file or Hugging Face id; `None` is the bundled model.
    pub model: Option<String>,
    /// Names the API answers to, the first is reported; empty: the model as given.
    pub served_model_name: Vec<String>,
    /// Directory or hub id; `None`: the model's.
    pub tokenizer: Option<String>,
    pub tokenizer_revision: Option<String>,
    /// Hub revision (branch, tag or commit); `None`: `main`.
    pub revision: Option<String>,
    /// From the flag or its twin only; the loader falls back to `HF_TOKEN` and the token file.
    pub hf_token: Option<Secret>,
    /// Directory or hub id of the config.json; `None`: the model's.
    pub hf_config_path: Option<String>,
    /// Merged over config.json, key by key.
    pub hf_overrides: JsonMap,
    /// Directory for downloads in place of the hub's cache.
    pub download_dir: Option<PathBuf>,
    pub load_format: LoadFormat,
    /// Weights and activations; `None`: auto.
    pub dtype: Option<DType>,
    /// vLLM's name of a method; `None`: from the checkpoint.
    pub quantization: Option<String>,
    /// `None`: from config.json.
    pub max_model_len: Option<MaxModelLen>,
    /// Key of draws of requests without a seed, and of dummy weights.
    pub seed: u64,
    /// Most logprobs a request may ask for; `None`: the vocabulary.
    pub max_logprobs: Option<u32>,
    pub logprobs_mode: LogprobsMode,
    pub generation_config: GenerationConfig,
    /// Sampling defaults over those of `generation_config`.
    pub override_generation_config: JsonMap,

    /// `None`: auto, the activations' type.
    pub kv_cache_dtype: Option<DType>,
    /// Bytes for KV pages on each device; `None`: from what is free.
    pub kv_cache_memory_bytes: Option<u64>,
    /// Share of a device's memory, `(0, 1]`, when given; `None`: 0.92. Without effect on the CPU: see
    /// [`EngineArgs::notices_on_cpu`].
    pub gpu_memory_utilization: Option<f64>,
    /// Tokens a page; `None`: the backend's.
    pub block_size: Option<u32>,
    /// Exact number of pages, for tests.
    pub num_gpu_blocks_override: Option<u32>,
    /// `None`: on where the model supports it.
    pub enable_prefix_caching: Option<bool>,

    /// `None`: on.
    pub enable_chunked_prefill: Option<bool>,
    /// Most prompt tokens of one request in one step; 0: the step's budget alone.
    pub long_prefill_token_threshold: u32,
    /// `None`: on.
    pub async_scheduling: Option<bool>,
    /// Most running requests; `None`: by device.
    pub max_num_seqs: Option<u32>,
    /// Token budget of a step; `None`: by device.
    pub max_num_batched_tokens: Option<u32>,
    /// Requests that may wait; beyond it 503. `None`: `limits::MAX_QUEUED_REQUESTS`.
    pub max_num_queued_reqs: Option<u32>,
    /// Prompt tokens that may wait; beyond it 503. `None`: no bound but that of requests.
    pub max_num_queued_tokens: Option<u64>,
    pub scheduling_policy: SchedulingPolicy,
    /// Draft tokens by vLLM's JSON; `None`: no speculation.
    pub speculative_config: Option<JsonMap>,

    /// Capture no graphs.
    pub enforce_eager: bool,
    /// Row counts to capture graphs for; empty: the runner's own.
    pub cudagraph_capture_sizes: Vec<u32>,
    /// Largest row count to capture; `None`: the runner's own.
    pub max_cudagraph_capture_size: Option<u32>,

    pub device: DeviceChoice,
    /// CPU worker threads, at least 1; `None`: what affinity and quota allow.
    pub threads: Option<u32>,
    /// Run ops that a backend lacks on the CPU reference; for bringing up a backend.
    pub allow_host_fallback: bool,
    /// A request's log-probs do not depend on its neighbours, to the bit. Always so on the CPU.
    pub batch_invariant: bool,
    /// No statistics line while running.
    pub disable_log_stats: bool,
}

/// What the HTTP front end does.
#[derive(Clone, Debug, PartialEq)]
pub struct FrontendArgs {
    /// Address to bind; `None`: all interfaces.
    pub host: Option<String>,
    /// 0 lets the system choose.
    pub port: u16,
    /// Unix socket in place of host and port.
    pub uds: Option<PathBuf>,
    /// Any of these as bearer token; empty: no check.
    pub api_key: Vec<Secret>,
    /// Sequences of one key in work at once; beyond it 429. `None`: no bound.
    pub max_num_seqs_per_key: Option<u32>,
    /// Path prefix behind a proxy; empty or starting with `/`.
    pub root_path: String,
    /// CORS; empty: no cross-origin answers.
    pub allowed_origins: Vec<String>,
    pub allowed_methods: Vec<String>,
    pub allowed_headers: Vec<String>,
    pub allow_credentials: bool,

    /// File, or the template itself on one line; `None`: the tokenizer's.
    pub chat_template: Option<String>,
    pub chat_template_content_format: ContentFormat,
    /// Keyword arguments under those of a request.
    pub default_chat_template_kwargs: JsonMap,
    /// Whether a request may bring its own template.
    pub trust_request_chat_template: bool,
    /// Role of the answer.
    pub response_role: String,
    /// `token_id:N` in place of text in logprobs.
    pub return_tokens_as_token_ids: bool,

    /// `prompt_tokens_details.cached_tokens` in usage.
    pub enable_prompt_tokens_details: bool,
    /// `metrics` in the answer to a single sequence.
    pub enable_per_request_metrics: bool,
    /// No tools in the prompt of a request whose `tool_choice` is `none`.
    pub exclude_tools_when_tool_choice_none: bool,
    /// /load counts.
    pub enable_server_load_tracking: bool,
    /// Usage on every stream, asked for or not.
    pub enable_force_include_usage: bool,
    /// Echo `X-Request-Id`.
    pub enable_request_id_headers: bool,
    /// Tokens gathered before one SSE chunk, at least 1; the first token goes out at once.
    pub stream_interval: u32,
    /// Seconds between comments on a silent stream; 0: none.
    pub sse_keep_alive_interval_s: f64,
    /// Seconds that streams may still run after SIGTERM.
    pub shutdown_timeout_s: f64,
    /// No /openapi.json.
    pub disable_openapi: bool,

    /// One line per request with its parameters.
    pub enable_log_requests: bool,
    /// Most prompt characters in such a line; `None`: all.
    pub max_log_len: Option<u32>,
    /// No line per HTTP request.
    pub disable_access_log: bool,
    /// Paths without a line per HTTP request.
    pub disable_access_log_for_endpoints: Vec<String>,
}

/// How the program logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoggingArgs {
    pub level: LogLevel,
    pub format: LogFormat,
}

/// `--max-model-len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxModelLen {
    /// As much of the model's context as fits in memory.
    Auto,
    /// Exactly this many tokens, at least 1.
    Tokens(u32),
}

/// Where sampling defaults come from (`--generation-config`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GenerationConfig {
    /// The model's generation_config.json, when there is one.
    Auto,
    /// Neutral defaults, no file (`vllm` on the command line).
    Neutral,
    /// A directory with a generation_config.json.
    Path(PathBuf),
}

/// A key or token. Its `Debug` shows nothing, so that printed arguments leak nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a key.
    pub fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }
    /// The key itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl EngineArgs {
    /// Flags that were given and do nothing on the CPU, one line each; for whoever resolves `--device auto`.
    pub fn notices_on_cpu(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.gpu_memory_utilization.is_some() {
            lines.push(
                "--gpu-memory-utilization: without effect on the CPU; --kv-cache-memory-bytes sets the size \
                 of the KV cache"
                    .to_owned(),
            );
        }
        if self.allow_host_fallback {
            lines.push(
                "--allow-host-fallback: without effect on the CPU, which runs every op itself".to_owned(),
            );
        }
        lines
    }
}

impl Default for EngineArgs {
    fn default() -> Self {
        EngineArgs {
            model: None,
            served_model_name: Vec::new(),
            tokenizer: None,
            tokenizer_revision: None,
            revision: None,
            hf_token: None,
            hf_config_path: None,
            hf_overrides: JsonMap::new(),
            download_dir: None,
            load_format: LoadFormat::Auto,
            dtype: None,
            quantization: None,
            max_model_len: None,
            seed: 0,
            max_logprobs: Some(20),
            logprobs_mode: LogprobsMode::RawLogprobs,
            generation_config: GenerationConfig::Auto,
            override_generation_config: JsonMap::new(),
            kv_cache_dtype: None,
            kv_cache_memory_bytes: None,
            gpu_memory_utilization: None,
            block_size: None,
            num_gpu_blocks_override: None,
            enable_prefix_caching: None,
            enable_chunked_prefill: None,
            long_prefill_token_threshold: 0,
            async_scheduling: None,
            max_num_seqs: None,
            max_num_batched_tokens: None,
            max_num_queued_reqs: None,
            max_num_queued_tokens: None,
            scheduling_policy: SchedulingPolicy::Fcfs,
            speculative_config: None,
            enforce_eager: false,
            cudagraph_capture_sizes: Vec::new(),
            max_cudagraph_capture_size: None,
            device: DeviceChoice::AUTO,
            threads: None,
            allow_host_fallback: false,
            batch_invariant: false,
            disable_log_stats: false,
        }
    }
}

impl Default for FrontendArgs {
    fn default() -> Self {
        FrontendArgs {
            host: None,
            port: 8000,
            uds: None,
            api_key: Vec::new(),
            max_num_seqs_per_key: None,
            root_path: String::new(),
            allowed_origins: Vec::new(),
            allowed_methods: vec!["*".to_owned()],
            allowed_headers: vec!["*".to_owned()],
            allow_credentials: false,
            chat_template: None,
            chat_template_content_format: ContentFormat::Auto,
            default_chat_template_kwargs: JsonMap::new(),
            trust_request_chat_template: false,
            response_role: "assistant".to_owned(),
            return_tokens_as_token_ids: false,
            enable_prompt_tokens_details: false,
            enable_per_request_metrics: false,
            exclude_tools_when_tool_choice_none: false,
            enable_server_load_tracking: false,
            enable_force_include_usage: false,
            enable_request_id_headers: false,
            stream_interval: 1,
            sse_keep_alive_interval_s: 0.0,
            shutdown_timeout_s: 0.0,
            disable_openapi: false,
            enable_log_requests: false,
            max_log_len: None,
            disable_access_log: false,
            disable_access_log_for_endpoints: Vec::new(),
        }
    }
}

impl Default for LoggingArgs {
    fn default() -> Self {
        LoggingArgs { level: LogLevel::Info, format: LogFormat::Text }
    }
}
