//! From resolved flags to the typed arguments of `serve` and of the engine.

use super::args::{
    EngineArgs, FrontendArgs, GenerationConfig, JsonMap, LoggingArgs, MaxModelLen, Secret, ServeArgs,
};
use super::choices::{DtypeName, LoadFormat};
use super::error::CliError;
use super::resolve::Resolved;

/// The arguments of `serve`.
///
/// # Errors
/// Values that are right one by one and contradict each other.
pub fn serve_args(flags: &mut Resolved) -> Result<ServeArgs, CliError> {
    Ok(ServeArgs {
        engine: engine_args(flags)?,
        frontend: frontend_args(flags)?,
        logging: logging_args(flags),
    })
}

/// The arguments of an engine.
///
/// # Errors
/// Values that are right one by one and contradict each other.
pub fn engine_args(flags: &mut Resolved) -> Result<EngineArgs, CliError> {
    let graphs = graph_args(flags)?;
    let args = EngineArgs {
        model: flags.opt_text("model"),
        served_model_name: flags.list("served-model-name"),
        tokenizer: flags.opt_text("tokenizer"),
        tokenizer_revision: flags.opt_text("tokenizer-revision"),
        revision: flags.opt_text("revision"),
        hf_token: secret(flags, "hf-token"),
        hf_config_path: flags.opt_text("hf-config-path"),
        hf_overrides: flags.json("hf-overrides"),
        download_dir: flags.opt_path("download-dir"),
        load_format: flags.choice("load-format"),
        dtype: flags.choice::<DtypeName>("dtype").dtype(),
        quantization: quantization(flags),
        max_model_len: max_model_len(flags),
        seed: flags.int("seed"),
        max_logprobs: u32::try_from(flags.int::<i64>("max-logprobs")).ok(),
        logprobs_mode: flags.choice("logprobs-mode"),
        generation_config: generation_config(flags),
        override_generation_config: flags.json("override-generation-config"),
        kv_cache_dtype: flags.choice::<DtypeName>("kv-cache-dtype").dtype(),
        kv_cache_memory_bytes: flags.opt_int("kv-cache-memory-bytes"),
        gpu_memory_utilization: flags.opt_float("gpu-memory-utilization"),
        block_size: flags.opt_int("block-size"),
        num_gpu_blocks_override: count(flags, "num-gpu-blocks-override")?,
        enable_prefix_caching: flags.opt_bool("enable-prefix-caching"),
        enable_chunked_prefill: flags.opt_bool("enable-chunked-prefill"),
        long_prefill_token_threshold: flags.int("long-prefill-token-threshold"),
        async_scheduling: flags.opt_bool("async-scheduling"),
        max_num_seqs: flags.opt_int("max-num-seqs"),
        max_num_batched_tokens: flags.opt_int("max-num-batched-tokens"),
        max_num_queued_reqs: flags.opt_int("max-num-queued-reqs"),
        max_num_queued_tokens: flags.opt_int("max-num-queued-tokens"),
        scheduling_policy: flags.choice("scheduling-policy"),
        speculative_config: speculative_config(flags),
        enforce_eager: graphs.eager,
        cudagraph_capture_sizes: graphs.sizes,
        max_cudagraph_capture_size: graphs.largest,
        device: flags.device("device"),
        threads: flags.opt_int("threads"),
        allow_host_fallback: flags.bool("allow-host-fallback"),
        batch_invariant: flags.bool("batch-invariant"),
        disable_log_stats: flags.bool("disable-log-stats"),
    };
    check_engine(flags, &args)?;
    Ok(args)
}

/// The arguments of the log.
pub fn logging_args(flags: &Resolved) -> LoggingArgs {
    LoggingArgs { level: flags.choice("log-level"), format: flags.choice("log-format") }
}

/// The object, and over it the flags that stand for one of its keys.
fn speculative_config(flags: &Resolved) -> Option<JsonMap> {
    let mut map = flags.json("speculative-config");
    for (flag, key) in [("spec-method", "method"), ("spec-model", "model")] {
        if let Some(text) = flags.opt_text(flag) {
            map.insert(key.to_owned(), text.into());
        }
    }
    if let Some(tokens) = flags.opt_int::<u32>("spec-tokens") {
        map.insert("num_speculative_tokens".to_owned(), tokens.into());
    }
    Some(map).filter(|map| !map.is_empty())
}

/// The method asked for; `--load-format bitsandbytes` asks for one too.
fn quantization(flags: &Resolved) -> Option<String> {
    let method = flags.opt_text("quantization").filter(|method| method != "none");
    let format: LoadFormat = flags.choice("load-format");
    method.or((format == LoadFormat::BitsAndBytes).then(|| "bitsandbytes".to_owned()))
}

/// A key that may be unset.
pub fn secret(flags: &Resolved, name: &str) -> Option<Secret> {
    flags.opt_text(name).map(Secret::new)
}

fn check_engine(flags: &Resolved, args: &EngineArgs) -> Result<(), CliError> {
    if let (Some(tokens), Some(rows)) = (args.max_num_batched_tokens, args.max_num_seqs)
        && tokens < rows
    {
        return Err(flags.error(
            "max-num-batched-tokens",
            format!("{tokens} is less than --max-num-seqs {rows}: each running request needs a token a step"),
        ));
    }
    if args.served_model_name.iter().any(String::is_empty) {
        return Err(flags.error("served-model-name", "a name is empty"));
    }
    Ok(())
}

fn max_model_len(flags: &Resolved) -> Option<MaxModelLen> {
    if flags.is_auto("max-model-len") {
        return Some(MaxModelLen::Auto);
    }
    flags.opt_int("max-model-len").map(MaxModelLen::Tokens)
}

fn generation_config(flags: &Resolved) -> GenerationConfig {
    match flags.opt_text("generation-config").as_deref() {
        None | Some("auto") => GenerationConfig::Auto,
        Some("vllm") => GenerationConfig::Neutral,
        Some(path) => GenerationConfig::Path(path.into()),
    }
}

/// A count whose type is narrower than the table's bound.
fn count(flags: &Resolved, name: &str) -> Result<Option<u32>, CliError> {
    match flags.opt_int::<u64>(name) {
        None => Ok(None),
        Some(number) => u32::try_from(number)
            .map(Some)
            .map_err(|_| flags.error(name, format!("{number} is too large; the most is {}", u32::MAX))),
    }
}

/// What the several flags about graphs come to.
struct GraphArgs {
    eager: bool,
    sizes: Vec<u32>,
    largest: Option<u32>,
}

/// Reads `--enforce-eager`, `-O0`, the capture sizes, and those keys of `--compilation-config` that mean
/// something here.
fn graph_args(flags: &mut Resolved) -> Result<GraphArgs, CliError> {
    let mut eager = flags.bool("enforce-eager") || flags.int::<u32>("optimization-level") == 0;
    let mut words = flags.list("cudagraph-capture-sizes");
    let mut largest = flags.opt_int("max-cudagraph-capture-size");
    let config: JsonMap = flags.json("compilation-config");
    for (key, value) in &config {
        match key.as_str() {
            "cudagraph_mode" => {
                let mode = value.as_str().unwrap_or_default();
                eager |= mode.eq_ignore_ascii_case("none") || value.as_i64() == Some(0);
            }
            "cudagraph_capture_sizes" if words.is_empty() => {
                words = value.as_array().into_iter().flatten().map(|item| item.to_string()).collect();
            }
            "max_cudagraph_capture_size" if largest.is_none() => {
                largest = value.as_u64().and_then(|size| u32::try_from(size).ok());
            }
            "cudagraph_capture_sizes" | "max_cudagraph_capture_size" => {}
            _ => flags.notices.push(format!(
                "--compilation-config.{key}: without effect: nothing is compiled at start or later"
            )),
        }
    }
    let sizes = words.iter().map(|word| capture_size(flags, word)).collect::<Result<_, _>>()?;
    Ok(GraphArgs { eager, sizes, largest })
}

fn capture_size(flags: &Resolved, word: &str) -> Result<u32, CliError> {
    match word.parse::<u32>() {
        Ok(size @ 1..=1_048_576) => Ok(size),
        _ => Err(flags.error(
            "cudagraph-capture-sizes",
            format!("'{word}' is no row count; give whole numbers from 1, such as 1 2 4 8"),
        )),
    }
}

fn frontend_args(flags: &Resolved) -> Result<FrontendArgs, CliError> {
    Ok(FrontendArgs {
        host: flags.opt_text("host"),
        port: flags.int("port"),
        uds: flags.opt_path("uds"),
        api_key: api_keys(flags)?,
        max_num_seqs_per_key: flags.opt_int("max-num-seqs-per-key"),
        root_path: root_path(flags)?,
        allowed_origins: flags.list("allowed-origins"),
        allowed_methods: flags.list("allowed-methods"),
        allowed_headers: flags.list("allowed-headers"),
        allow_credentials: flags.bool("allow-credentials"),
        chat_template: flags.opt_text("chat-template"),
        chat_template_content_format: flags.choice("chat-template-content-format"),
        default_chat_template_kwargs: flags.json("default-chat-template-kwargs"),
        trust_request_chat_template: flags.bool("trust-request-chat-template"),
        response_role: flags
            .opt_text("response-role")
            .ok_or_else(|| flags.error("response-role", "is empty; give a role such as assistant"))?,
        return_tokens_as_token_ids: flags.bool("return-tokens-as-token-ids"),
        enable_prompt_tokens_details: flags.bool("enable-prompt-tokens-details"),
        enable_per_request_metrics: flags.bool("enable-per-request-metrics"),
        exclude_tools_when_tool_choice_none: flags.bool("exclude-tools-when-tool-choice-none"),
        enable_server_load_tracking: flags.bool("enable-server-load-tracking"),
        enable_force_include_usage: flags.bool("enable-force-include-usage"),
        enable_request_id_headers: flags.bool("enable-request-id-headers"),
        stream_interval: flags.int("stream-interval"),
        sse_keep_alive_interval_s: flags.float("sse-keep-alive-interval"),
        shutdown_timeout_s: flags.float("shutdown-timeout"),
        disable_openapi: flags.bool("disable-fastapi-docs"),
        enable_log_requests: flags.bool("enable-log-requests"),
        max_log_len: count(flags, "max-log-len")?,
        disable_access_log: flags.bool("disable-uvicorn-access-log"),
        disable_access_log_for_endpoints: comma_words(flags.list("disable-access-log-for-endpoints")),
    })
}

fn api_keys(flags: &Resolved) -> Result<Vec<Secret>, CliError> {
    let keys = flags.list("api-key");
    if flags.is_given("api-key") && (keys.is_empty() || keys.iter().any(|key| key.trim().is_empty())) {
        return Err(flags.error("api-key", "a key is empty; give one, or leave it out to let everyone in"));
    }
    Ok(keys.into_iter().map(Secret::new).collect())
}

fn root_path(flags: &Resolved) -> Result<String, CliError> {
    let path = flags.opt_text("root-path").unwrap_or_default();
    let path = path.trim_end_matches('/');
    if path.is_empty() || path.starts_with('/') {
        Ok(path.to_owned())
    } else {
        Err(flags
            .error("root-path", format!("'{path}' is no path; give one that starts with /, such as /{path}")))
    }
}

/// Words that may also be separated by commas.
pub fn comma_words(items: Vec<String>) -> Vec<String> {
    let parts = items.iter().flat_map(|item| item.split(','));
    parts.map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}
