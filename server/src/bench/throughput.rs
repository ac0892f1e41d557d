//! `pallium bench throughput`: many requests at once. The printed lines and the JSON keys of
//! `vllm bench throughput` come first; then what the whole run reached of what the machine can do.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::cost::{ModelCost, Work};
use super::drive::{self, Detokenize, check_fits};
use super::limits::{self, Rate};
use super::prompts::{self, Sample};
use crate::cli::BenchThroughputArgs;
use crate::cli::progress::Progress;
use crate::client::EngineClient as _;
use crate::device::MachineLimits;
use crate::local::Local;
use crate::model::StartError;

/// Requests handed to the engine at once; more wait here, below the bound of its queue.
const MOST_OPEN: usize = 4096;

/// Measures, prints, and writes the file of `--output-json`.
///
/// # Errors
/// The model or the data set cannot be loaded, a request exceeds the context, or the engine fails.
pub fn run(args: &BenchThroughputArgs) -> Result<(), StartError> {
    let local = Local::start(&args.engine, args.logging.format)?;
    let samples = prompts::load(&args.workload, local.state.codec.as_ref(), local.config.vocab_size)?;
    for sample in &samples {
        check_fits(&local, sample.prompt.len() as u32, sample.output_len)?;
    }
    let totals = local.block_on(measure(args, &local, &samples))?;
    let limits = limits::measure(&args.engine, &local.engine.report.device);
    let figures = Figures {
        model: local.state.model_name().to_owned(),
        rate: rate(args, &local, &samples, &totals),
        totals,
        limits,
    };
    std::io::stdout().write_all(figures.text().as_bytes())?;
    super::save(args.output_json.as_deref(), &figures.json())
}

struct Totals {
    elapsed_s: f64,
    requests: u64,
    prompt_tokens: u64,
    output_tokens: u64,
}

async fn measure(
    args: &BenchThroughputArgs,
    local: &Local,
    samples: &[Sample],
) -> Result<Totals, StartError> {
    let detokenize = Detokenize::unless(args.disable_detokenize);
    let most_open = args.engine.max_num_queued_reqs.map_or(MOST_OPEN, |n| (n as usize).clamp(1, MOST_OPEN));
    let slots = Arc::new(Semaphore::new((most_open / args.n as usize).max(1)));
    let bar = Progress::steps("Requests", samples.len() as u64, args.logging.format);
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    let mut output_tokens = 0;
    let mut take = |done: Result<Result<drive::Timed, StartError>, tokio::task::JoinError>| {
        bar.advance(1);
        output_tokens += done.map_err(|e| StartError::new(e.to_string()))??.output_tokens;
        Ok::<(), StartError>(())
    };
    for (i, sample) in samples.iter().enumerate() {
        let slot = slots.clone().acquire_owned().await.map_err(|e| StartError::new(e.to_string()))?;
        let (state, prompt) = (local.state.clone(), sample.prompt.clone());
        let seed = args.engine.seed.wrapping_add(i as u64 * u64::from(args.n));
        let (output_len, n) = (sample.output_len, u64::from(args.n));
        tasks.spawn_on(
            async move {
                let one = |k| (prompt.clone(), drive::params(output_len, seed.wrapping_add(k)));
                let sequences: Vec<_> = (0..n).map(one).collect();
                let timed = drive::run(&state, &sequences, detokenize).await;
                drop(slot);
                timed
            },
            local.runtime().handle(),
        );
        while let Some(done) = tasks.try_join_next() {
            take(done)?;
        }
    }
    while let Some(done) = tasks.join_next().await {
        take(done)?;
    }
    bar.finish();
    Ok(Totals {
        elapsed_s: start.elapsed().as_secs_f64(),
        requests: samples.len() as u64,
        prompt_tokens: samples.iter().map(|s| s.prompt.len() as u64).sum(),
        output_tokens,
    })
}

/// What the run had to do at least: the weights once a step, each cached token once per token generated after it,
/// and the arithmetic of every token.
fn rate(args: &BenchThroughputArgs, local: &Local, samples: &[Sample], totals: &Totals) -> Option<Rate> {
    let report = &local.engine.report;
    let steps = local.engine.steps();
    // What came from the prefix cache was not computed.
    let cached = local.engine.stats().prefix_cache_hits as f64;
    let prompts = (totals.prompt_tokens * u64::from(args.n)).max(1) as f64;
    let computed = (1.0 - cached / prompts).max(0.0);
    let cost = ModelCost::new(&local.config, report.dtype, report.kv_dtype).ok()?;
    let weights = cost.decode_step(0.0, 0.0).bytes;
    let mut work = Work { bytes: weights * steps as f64, flop: 0.0 };
    for sample in samples {
        let (input, later) = (sample.prompt.len() as f64, f64::from(sample.output_len - 1));
        let decode = cost.decode_step(1.0, input + later / 2.0 + 1.0);
        let decode = Work { bytes: decode.bytes - weights, ..decode } * later;
        let prefill = Work { bytes: 0.0, ..cost.prefill(1.0, input) } * computed;
        work = work + (prefill + decode) * f64::from(args.n);
    }
    Some(Rate { work, seconds: totals.elapsed_s })
}

struct Figures {
    model: String,
    totals: Totals,
    rate: Option<Rate>,
    limits: Option<MachineLimits>,
}

impl Figures {
    fn per_s(&self, count: u64) -> f64 {
        count as f64 / self.totals.elapsed_s
    }

    fn text(&self) -> String {
        let t = &self.totals;
        let all = t.prompt_tokens + t.output_tokens;
        let mut text = format!(
            "Throughput: {:.2} requests/s, {:.2} total tokens/s, {:.2} output tokens/s\n\
             Total num prompt tokens:  {}\nTotal num output tokens:  {}\n",
            self.per_s(t.requests),
            self.per_s(all),
            self.per_s(t.output_tokens),
            t.prompt_tokens,
            t.output_tokens,
        );
        if let Some(rate) = &self.rate {
            text.push_str(&format!("At least: {}\n", rate.text(self.limits.as_ref())));
        }
        if let Some(limits) = &self.limits {
            text.push_str(&format!("{}\n", limits::line_of(limits)));
        }
        text
    }

    fn json(&self) -> Value {
        let (t, limits) = (&self.totals, self.limits.as_ref());
        let all = t.prompt_tokens + t.output_tokens;
        json!({
            "model_id": self.model,
            "elapsed_time": t.elapsed_s,
            "num_requests": t.requests,
            "total_num_tokens": all,
            "requests_per_second": self.per_s(t.requests),
            "tokens_per_second": self.per_s(all),
            "output_tokens_per_second": self.per_s(t.output_tokens),
            "total_prompt_tokens": t.prompt_tokens,
            "total_output_tokens": t.output_tokens,
            "work": self.rate.map(|r| r.json(limits)),
            "machine_limits": limits::json_of(limits),
        })
    }
}
