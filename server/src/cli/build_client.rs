//! From resolved flags to the typed arguments of every command but `serve`.

use super::args_client::{
    BenchLatencyArgs, BenchServeArgs, BenchStartupArgs, BenchThroughputArgs, ChatArgs, DoctorArgs,
    MakeCheckpointArgs, PullArgs, RampUpArgs, ResultFile, SamplingArgs, SessionArgs, Target, Workload,
};
use super::build::{comma_words, engine_args, logging_args, secret};
use super::choices::{BenchBackend, DatasetName, DtypeName, RampUp};
use super::error::CliError;
use super::resolve::Resolved;

/// Metrics that percentiles and goodput speak of.
const METRICS: &[&str] = &["ttft", "tpot", "itl", "e2el"];
/// Where a server listens unless it is told otherwise.
const DEFAULT_URL: &str = "http://localhost:8000/v1";

/// The arguments of `chat`.
///
/// # Errors
/// Values that contradict each other.
pub fn chat_args(flags: &mut Resolved) -> Result<ChatArgs, CliError> {
    Ok(ChatArgs { system_prompt: flags.opt_text("system-prompt"), session: session_args(flags)? })
}

/// The arguments of `complete`, and those that `chat` shares with it.
///
/// # Errors
/// Values that contradict each other.
pub fn session_args(flags: &mut Resolved) -> Result<SessionArgs, CliError> {
    Ok(SessionArgs {
        target: target(flags)?,
        quick: flags.opt_text("quick"),
        max_tokens: flags.opt_int("max-tokens"),
        sampling: sampling_args(flags),
        stats: flags.bool("stats"),
        logging: logging_args(flags),
    })
}

/// The arguments of `bench latency`.
///
/// # Errors
/// Values that contradict each other.
pub fn bench_latency_args(flags: &mut Resolved) -> Result<BenchLatencyArgs, CliError> {
    Ok(BenchLatencyArgs {
        engine: engine_args(flags)?,
        logging: logging_args(flags),
        input_len: flags.int("input-len"),
        output_len: flags.int("output-len"),
        batch_size: flags.int("batch-size"),
        n: flags.int("n"),
        temperature: flags.float("temperature") as f32,
        num_iters_warmup: flags.int("num-iters-warmup"),
        num_iters: flags.int("num-iters"),
        disable_detokenize: flags.bool("disable-detokenize"),
        output_json: flags.opt_path("output-json"),
    })
}

/// The arguments of `bench throughput`.
///
/// # Errors
/// Values that contradict each other.
pub fn bench_throughput_args(flags: &mut Resolved) -> Result<BenchThroughputArgs, CliError> {
    Ok(BenchThroughputArgs {
        engine: engine_args(flags)?,
        logging: logging_args(flags),
        workload: workload(flags)?,
        n: flags.int("n"),
        disable_detokenize: flags.bool("disable-detokenize"),
        output_json: flags.opt_path("output-json"),
    })
}

/// The arguments of `bench serve`.
///
/// # Errors
/// Values that contradict each other.
pub fn bench_serve_args(flags: &mut Resolved) -> Result<BenchServeArgs, CliError> {
    let backend: BenchBackend = flags.choice("backend");
    Ok(BenchServeArgs {
        logging: logging_args(flags),
        backend,
        base_url: base_url(flags),
        endpoint: endpoint(flags, backend)?,
        api_key: secret(flags, "api-key"),
        model: flags.opt_text("model"),
        served_model_name: flags.list("served-model-name").into_iter().next(),
        tokenizer: flags.opt_text("tokenizer"),
        workload: workload(flags)?,
        request_rate: flags.float("request-rate"),
        burstiness: flags.float("burstiness"),
        max_concurrency: flags.opt_int("max-concurrency"),
        ramp_up: ramp_up(flags)?,
        num_warmups: flags.int("num-warmups"),
        ignore_eos: flags.bool("ignore-eos"),
        sampling: sampling_args(flags),
        extra_body: flags.json("extra-body"),
        headers: pairs(flags, "header", '=')?,
        goodput: goodput(flags)?,
        percentile_metrics: percentile_metrics(flags)?,
        metric_percentiles: percentiles(flags)?,
        ready_check_timeout_s: flags.int("ready-check-timeout-sec"),
        disable_progress: flags.bool("disable-tqdm"),
        results: result_file(flags)?,
    })
}

/// The arguments of `bench startup`.
///
/// # Errors
/// Values that contradict each other.
pub fn bench_startup_args(flags: &mut Resolved) -> Result<BenchStartupArgs, CliError> {
    Ok(BenchStartupArgs {
        engine: engine_args(flags)?,
        logging: logging_args(flags),
        serve_variables: flags.variables(super::flags::ENGINE),
        num_iters_cold: flags.int("num-iters-cold"),
        num_iters_warm: flags.int("num-iters-warm"),
        output_json: flags.opt_path("output-json"),
    })
}

/// The arguments of `bench make-checkpoint`.
///
/// # Errors
/// No model or no directory to write.
pub fn make_checkpoint_args(flags: &Resolved) -> Result<MakeCheckpointArgs, CliError> {
    let missing = |name: &str, what: &str| flags.error(name, format!("is missing; give {what}"));
    Ok(MakeCheckpointArgs {
        logging: logging_args(flags),
        model: flags
            .opt_path("model")
            .ok_or_else(|| missing("model", "a config.json or a directory with one"))?,
        output: flags.opt_path("output").ok_or_else(|| missing("output", "the directory to write"))?,
        dtype: flags.choice::<DtypeName>("dtype").dtype(),
        seed: flags.int("seed"),
        max_shard_bytes: flags.int("max-shard-size"),
    })
}

/// The arguments of `doctor`.
///
/// # Errors
/// Values that contradict each other.
pub fn doctor_args(flags: &mut Resolved) -> Result<DoctorArgs, CliError> {
    Ok(DoctorArgs { engine: engine_args(flags)?, logging: logging_args(flags), json: flags.bool("json") })
}

/// The arguments of `pull`.
///
/// # Errors
/// No model is named.
pub fn pull_args(flags: &Resolved) -> Result<PullArgs, CliError> {
    let missing = || CliError::new("pallium pull", "needs a model, such as pallium pull Qwen/Qwen3-0.6B");
    Ok(PullArgs {
        model: flags.opt_text("model").ok_or_else(missing)?,
        revision: flags.opt_text("revision"),
        include: flags.list("include"),
        hf_token: secret(flags, "hf-token"),
        download_dir: flags.opt_path("download-dir"),
        logging: logging_args(flags),
    })
}

/// A server when one is named by `--url` or a model on it by `--model-name`, else an engine here.
fn target(flags: &mut Resolved) -> Result<Target, CliError> {
    let (url, model_name) = (flags.opt_text("url"), flags.opt_text("model-name"));
    let api_key = secret(flags, "api-key");
    if url.is_none() && model_name.is_none() {
        return Ok(Target::InProcess(Box::new(engine_args(flags)?)));
    }
    if let Some(model) = flags.opt_text("model") {
        return Err(flags.error(
            "model",
            format!(
                "'{model}' runs in this process, and --url or --model-name asks a server; give one of them"
            ),
        ));
    }
    let url = url.unwrap_or_else(|| DEFAULT_URL.to_owned());
    check_url(flags, "url", &url)?;
    Ok(Target::Server { url: url.trim_end_matches('/').to_owned(), api_key, model_name })
}

fn check_url(flags: &Resolved, name: &str, url: &str) -> Result<(), CliError> {
    if url.starts_with("http://") || url.starts_with("https://") {
        Ok(())
    } else {
        Err(flags.error(name, format!("'{url}' is no URL; give one such as {DEFAULT_URL}")))
    }
}

fn sampling_args(flags: &Resolved) -> SamplingArgs {
    SamplingArgs {
        temperature: flags.opt_float("temperature"),
        top_p: flags.opt_float("top-p"),
        top_k: flags.opt_int("top-k"),
        min_p: flags.opt_float("min-p"),
        frequency_penalty: flags.opt_float("frequency-penalty"),
        presence_penalty: flags.opt_float("presence-penalty"),
        repetition_penalty: flags.opt_float("repetition-penalty"),
    }
}

fn workload(flags: &Resolved) -> Result<Workload, CliError> {
    let dataset: DatasetName = flags.choice("dataset-name");
    let dataset_path = flags.opt_path("dataset-path");
    let random = dataset == DatasetName::Random;
    if !random && dataset_path.is_none() {
        return Err(flags.error("dataset-path", format!("is missing; {} reads a file", dataset.name())));
    }
    let length = |name: &str, random_name: &str, of_random: u32| {
        let random_length = flags.opt_int(random_name).filter(|_| random);
        flags.opt_int(name).or(random_length).or(random.then_some(of_random))
    };
    Ok(Workload {
        dataset,
        dataset_path,
        num_prompts: flags.int("num-prompts"),
        input_len: length("input-len", "random-input-len", 1024),
        output_len: length("output-len", "random-output-len", 128),
        random_range_ratio: flags.float("random-range-ratio"),
        random_prefix_len: flags.int("random-prefix-len"),
        seed: flags.int("seed"),
    })
}

fn base_url(flags: &Resolved) -> String {
    let given = flags.opt_text("base-url");
    let (host, port): (Option<String>, u16) = (flags.opt_text("host"), flags.int("port"));
    match given {
        Some(url) if url.contains("://") => url.trim_end_matches('/').to_owned(),
        Some(authority) => format!("http://{}", authority.trim_end_matches('/')),
        None => format!("http://{}:{port}", host.as_deref().unwrap_or("127.0.0.1")),
    }
}

fn endpoint(flags: &Resolved, backend: BenchBackend) -> Result<String, CliError> {
    let of_backend = match backend {
        BenchBackend::Openai => "/v1/completions",
        BenchBackend::OpenaiChat => "/v1/chat/completions",
    };
    match flags.opt_text("endpoint") {
        None => Ok(of_backend.to_owned()),
        Some(path) if path.starts_with('/') => Ok(path),
        Some(path) => {
            Err(flags.error("endpoint", format!("'{path}' is no path; give one such as {of_backend}")))
        }
    }
}

fn ramp_up(flags: &Resolved) -> Result<Option<RampUpArgs>, CliError> {
    let (start, end) = (flags.opt_float("ramp-up-start-rps"), flags.opt_float("ramp-up-end-rps"));
    let infinite = flags.float("request-rate").is_infinite();
    match (flags.opt_choice::<RampUp>("ramp-up-strategy"), start, end) {
        (None, None, None) => Ok(None),
        (Some(strategy), Some(start_rps), Some(end_rps)) if infinite => {
            Ok(Some(RampUpArgs { strategy, start_rps, end_rps }))
        }
        (Some(_), Some(_), Some(_)) => {
            Err(flags.error("request-rate", "contradicts --ramp-up-strategy, which sets the rate"))
        }
        _ => Err(flags.error(
            "ramp-up-strategy",
            "needs --ramp-up-start-rps and --ramp-up-end-rps beside it, and they need it",
        )),
    }
}

/// `key=value` words.
fn pairs(flags: &Resolved, name: &str, separator: char) -> Result<Vec<(String, String)>, CliError> {
    let split = |item: String| match item.split_once(separator) {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(flags.error(name, format!("'{item}' is no pair; give key{separator}value"))),
    };
    flags.list(name).into_iter().map(split).collect()
}

fn goodput(flags: &Resolved) -> Result<Vec<(String, f64)>, CliError> {
    let allowed = ["ttft", "tpot", "e2el"];
    let check = |(metric, limit): (String, String)| match limit.parse::<f64>() {
        Ok(ms) if ms >= 0.0 && allowed.contains(&metric.as_str()) => Ok((metric, ms)),
        _ => Err(flags.error(
            "goodput",
            format!(
                "'{metric}:{limit}' is no limit; give ttft, tpot or e2el with milliseconds, such as ttft:200"
            ),
        )),
    };
    pairs(flags, "goodput", ':')?.into_iter().map(check).collect()
}

fn percentile_metrics(flags: &Resolved) -> Result<Vec<String>, CliError> {
    let names = comma_words(flags.list("percentile-metrics"));
    match names.iter().find(|name| !METRICS.contains(&name.as_str())) {
        None => Ok(names),
        Some(name) => Err(flags.error(
            "percentile-metrics",
            format!("'{name}' is not known; give some of {}", METRICS.join(", ")),
        )),
    }
}

fn percentiles(flags: &Resolved) -> Result<Vec<f64>, CliError> {
    let parse = |word: String| match word.parse::<f64>() {
        Ok(percentile) if percentile > 0.0 && percentile < 100.0 => Ok(percentile),
        _ => Err(flags.error(
            "metric-percentiles",
            format!("'{word}' is no percentile; give numbers between 0 and 100"),
        )),
    };
    comma_words(flags.list("metric-percentiles")).into_iter().map(parse).collect()
}

fn result_file(flags: &Resolved) -> Result<ResultFile, CliError> {
    Ok(ResultFile {
        save_result: flags.bool("save-result"),
        save_detailed: flags.bool("save-detailed"),
        append_result: flags.bool("append-result"),
        dir: flags.opt_path("result-dir"),
        filename: flags.opt_text("result-filename"),
        metadata: pairs(flags, "metadata", '=')?,
        label: flags.opt_text("label"),
    })
}
