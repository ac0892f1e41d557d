//! `pallium bench latency`: one batch over and over. Printed lines and JSON keys are those of `vllm bench latency`;
//! beside them stands what prefill and decode reached of what the machine can do.

use std::io::Write as _;
use std::sync::Arc;

use engine_core::engine::types::DraftCounts;
use engine_core::sampling::SamplingParams;
use serde_json::{Map, Value, json};

use super::cost::ModelCost;
use super::drive::{self, Detokenize, Timed, check_fits};
use super::limits::{self, Rate};
use super::prompts::random_ids;
use super::serve::rng::Rng;
use super::statistics::{mean, median, percentile};
use crate::cli::progress::Progress;
use crate::cli::{BenchLatencyArgs, EngineArgs};
use crate::client::EngineClient as _;
use crate::device::MachineLimits;
use crate::local::Local;
use crate::model::StartError;

const PERCENTILES: [u32; 6] = [10, 25, 50, 75, 90, 99];

/// Measures, prints, and writes the file of `--output-json`.
///
/// # Errors
/// The model cannot be loaded, the lengths exceed its context, or the engine fails.
pub fn run(args: &BenchLatencyArgs) -> Result<(), StartError> {
    // A prompt that is found in the cache has no prefill to measure.
    let prefix_caching = args.engine.enable_prefix_caching.or(Some(false));
    let engine = EngineArgs { enable_prefix_caching: prefix_caching, ..args.engine.clone() };
    let local = Local::start(&engine, args.logging.format)?;
    check_fits(&local, args.input_len, args.output_len)?;
    let batch = batch(args, local.config.vocab_size);
    let runs = local.block_on(measure(args, &local, &batch))?;
    let limits = limits::measure(&engine, &local.engine.report.device);
    let figures = Figures::new(args, &local, &runs, limits);
    std::io::stdout().write_all(figures.text().as_bytes())?;
    super::save(args.output_json.as_deref(), &figures.json())
}

fn batch(args: &BenchLatencyArgs, vocab_size: u32) -> Vec<(Arc<[u32]>, SamplingParams)> {
    let mut rng = Rng::new(args.engine.seed);
    let mut batch = Vec::new();
    for _ in 0..args.batch_size {
        let prompt: Arc<[u32]> = random_ids(&mut rng, args.input_len, vocab_size).into();
        for _ in 0..args.n {
            let params = drive::params(args.output_len, rng.next());
            batch.push((prompt.clone(), SamplingParams { temperature: args.temperature, ..params }));
        }
    }
    batch
}

async fn measure(
    args: &BenchLatencyArgs,
    local: &Local,
    batch: &[(Arc<[u32]>, SamplingParams)],
) -> Result<Vec<Timed>, StartError> {
    let detokenize = Detokenize::unless(args.disable_detokenize);
    let total = u64::from(args.num_iters_warmup) + u64::from(args.num_iters);
    let bar = Progress::steps("Iterations", total, args.logging.format);
    let mut runs = Vec::with_capacity(args.num_iters as usize);
    for i in 0..args.num_iters_warmup + args.num_iters {
        let timed = drive::run(&local.state, batch, detokenize).await?;
        if i >= args.num_iters_warmup {
            runs.push(timed);
        }
        bar.advance(1);
    }
    bar.finish();
    Ok(runs)
}

struct Figures {
    latencies: Vec<f64>,
    sequences: u32,
    input_len: u32,
    first_s: f64,
    step_s: Option<f64>,
    prefill: Option<Rate>,
    decode: Option<Rate>,
    limits: Option<MachineLimits>,
    /// Of all runs, when there is speculation.
    drafts: Option<DraftCounts>,
}

impl Figures {
    fn new(args: &BenchLatencyArgs, local: &Local, runs: &[Timed], limits: Option<MachineLimits>) -> Self {
        let report = &local.engine.report;
        let cost = ModelCost::new(&local.config, report.dtype, report.kv_dtype).ok();
        let (rows, input) = (f64::from(args.batch_size * args.n), f64::from(args.input_len));
        let steps = f64::from(args.output_len - 1);
        let first_s = median(&runs.iter().map(|r| r.first_s).collect::<Vec<_>>());
        let rest: Vec<f64> = runs.iter().map(|r| (r.total_s - r.first_s) / steps).collect();
        let step_s = (steps > 0.0).then(|| median(&rest));
        let rate = |work, seconds| Rate { work, seconds };
        let drafts = local.engine.info().draft_tokens.map(|_| local.engine.stats().drafts);
        Figures {
            latencies: runs.iter().map(|r| r.total_s).collect(),
            sequences: args.batch_size * args.n,
            input_len: args.input_len,
            first_s,
            step_s,
            prefill: cost.as_ref().map(|c| rate(c.prefill(rows, input), first_s)),
            // On average half of the answer is there. With drafts a step makes several tokens.
            decode: cost
                .zip(step_s.filter(|_| drafts.is_none()))
                .map(|(c, step_s)| rate(c.decode_step(rows, input + steps / 2.0 + 1.0), step_s)),
            limits,
            drafts,
        }
    }

    fn text(&self) -> String {
        let mut text = format!("Avg latency: {} seconds\n", mean(&self.latencies));
        for p in PERCENTILES {
            let seconds = percentile(&self.latencies, f64::from(p));
            text.push_str(&format!("{p}% percentile latency: {seconds} seconds\n"));
        }
        let limits = self.limits.as_ref();
        let rates = |rate: &Option<Rate>| rate.map_or(String::new(), |r| format!(": {}", r.text(limits)));
        text.push_str(&format!(
            "Prefill: {} x {} tokens in {:.2} ms{}\n",
            self.sequences,
            self.input_len,
            self.first_s * 1e3,
            rates(&self.prefill)
        ));
        if let Some(step_s) = self.step_s {
            let what = if self.drafts.is_some() { "token" } else { "step" };
            let (step_ms, tokens) = (step_s * 1e3, f64::from(self.sequences) / step_s);
            text.push_str(&format!(
                "Decode: {step_ms:.2} ms a {what}, {tokens:.1} tokens/s{}\n",
                rates(&self.decode)
            ));
        }
        if let Some(drafts) = &self.drafts {
            text.push_str(&drafts_line(drafts));
        }
        if let Some(limits) = limits {
            text.push_str(&format!("{}\n", limits::line_of(limits)));
        }
        text
    }

    fn json(&self) -> Value {
        let limits = self.limits.as_ref();
        let percentiles: Map<String, Value> = PERCENTILES
            .iter()
            .map(|p| (p.to_string(), percentile(&self.latencies, f64::from(*p)).into()))
            .collect();
        json!({
            "avg_latency": mean(&self.latencies),
            "latencies": self.latencies,
            "percentiles": percentiles,
            "prefill_s": self.first_s,
            "decode_step_s": self.step_s,
            "prefill": self.prefill.map(|r| r.json(limits)),
            "decode": self.decode.map(|r| r.json(limits)),
            "machine_limits": limits::json_of(limits),
            "drafts": self.drafts.map(|d| json!({"drafts": d.drafts, "tokens": d.tokens, "accepted": d.accepted})),
        })
    }
}

fn drafts_line(d: &DraftCounts) -> String {
    let share = |part: u64, of: u64| part as f64 / of.max(1) as f64;
    format!(
        "Drafts: {:.1} % of {} tokens accepted, {:.2} tokens a step with drafts\n",
        100.0 * share(d.accepted, d.tokens),
        d.tokens,
        1.0 + share(d.accepted, d.drafts)
    )
}
