//! Times decode and prefill of a model shape with random weights on a device, through the whole engine:
//! `device-bench DEVICE CONFIG_DIR ROWS[,ROWS..] [PROMPT] [OUTPUT]`. Prints one line a case.
//!
//! A decode figure is the median time between the deliveries of two steps in which all rows decode; a prefill figure
//! is the time from submission to the last first token.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use engine_core::backend::Backend;
use engine_core::config::ModelConfig;
use engine_core::engine::build::MaxModelLen;
use engine_core::engine::types::{OutputSink, Request, RequestId, StepOutputs};
use engine_core::engine::{EngineHandle, EngineOptions, start};
use engine_core::kv::PrefixCaching;
use engine_core::loader::source::DummySource;
use engine_core::sampling::SamplingParams;
use server::cli::{DeviceChoice, DeviceKind};

#[derive(Default)]
struct Board {
    /// (when, rows delivered, requests ended so far)
    steps: Vec<(Instant, usize)>,
    ended: usize,
    firsts: usize,
    first_done: Option<Instant>,
    lost: Option<String>,
}

#[derive(Clone, Default)]
struct Sink(Arc<(Mutex<Board>, Condvar)>);

impl OutputSink for Sink {
    fn deliver(&mut self, outputs: &mut StepOutputs) {
        let (board, changed) = &*self.0;
        let mut board = board.lock().unwrap();
        let now = Instant::now();
        board.steps.push((now, outputs.rows.len()));
        board.ended += outputs.rows.iter().filter(|r| r.finish.is_some()).count();
        board.firsts += outputs.rows.iter().filter(|r| r.first.is_some()).count();
        board.first_done = Some(now);
        changed.notify_all();
    }
    fn engine_lost(&mut self, reason: &str) {
        self.0.0.lock().unwrap().lost = Some(reason.to_owned());
        self.0.1.notify_all();
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let number = |i: usize, default: u32| args.get(i).map_or(default, |a| a.parse().unwrap());
    let (prompt, output) = (number(4, 512), number(5, 128));
    let rows: Vec<u32> = args[3].split(',').map(|n| n.parse().unwrap()).collect();
    let begin = Instant::now();
    let kind = if args[1] == "cpu" { DeviceKind::Cpu } else { DeviceKind::Cuda };
    let backend: Arc<dyn Backend> =
        server::device::open(DeviceChoice { kind, index: None }, Default::default()).unwrap();
    println!("device open {:.2} s: {}", begin.elapsed().as_secs_f64(), backend.info().name);
    let config = ModelConfig::from_dir(std::path::Path::new(&args[2]), None).unwrap();
    let dtype = config.dtype.unwrap_or(engine_core::DType::Bf16);
    let source = DummySource { seed: 0, std: config.initializer_range, dtype };
    let options = EngineOptions {
        max_model_len: Some(MaxModelLen::Tokens((prompt + output + 64).max(9_000))),
        max_num_seqs: Some(256),
        prefix_caching: PrefixCaching::Off,
        loader_threads: 8,
        memory_utilization: (args[1] != "cpu").then_some(0.9),
        ..EngineOptions::default()
    };
    let sink = Sink::default();
    let running = start(backend, &config, &source, &options, Box::new(sink.clone()), &|_| {}).unwrap();
    println!("ready {:.2} s, {} KV tokens", begin.elapsed().as_secs_f64(), running.report.kv_tokens);
    let mut id = 0;
    batch(&running.handle, &sink, &mut id, 1, 16, 2, config.vocab_size);
    println!("first token {:.2} s after process start", begin.elapsed().as_secs_f64());
    for n in rows {
        // Once for graphs and choices, once for the figure.
        batch(&running.handle, &sink, &mut id, n, prompt, 8, config.vocab_size);
        let (prefill, decode, total) =
            batch(&running.handle, &sink, &mut id, n, prompt, output, config.vocab_size);
        println!(
            "{n:4} rows: decode {:.3} ms a step, {:.0} tok/s; prefill of {n} x {prompt} {:.1} ms, {:.0} tok/s; all {:.2} s",
            decode * 1e3,
            f64::from(n) / decode,
            prefill * 1e3,
            f64::from(n * prompt) / prefill,
            total
        );
    }
    running.handle.stop();
}

/// Seconds to the last first token, of a median full decode step, and in all.
fn batch(
    h: &EngineHandle,
    sink: &Sink,
    id: &mut u64,
    n: u32,
    prompt: u32,
    output: u32,
    vocab: u32,
) -> (f64, f64, f64) {
    *sink.0.0.lock().unwrap() = Board::default();
    let begin = Instant::now();
    for i in 0..n {
        *id += 1;
        let tokens: Vec<u32> =
            (0..prompt).map(|t| (t * 7919 + i * 104_729 + *id as u32 * 31) % vocab).collect();
        let params = SamplingParams {
            temperature: 0.0,
            max_tokens: output,
            ignore_eos: true,
            ..SamplingParams::default()
        };
        h.submit(Request {
            id: RequestId(*id),
            prompt: tokens.into(),
            params,
            priority: 0,
            cache_salt: None,
            arrival: Instant::now(),
        })
        .unwrap();
    }
    let (board, changed) = &*sink.0;
    let guard = board.lock().unwrap();
    let open = |b: &mut Board| b.lost.is_none() && b.ended < n as usize;
    let (guard, timeout) = changed.wait_timeout_while(guard, Duration::from_secs(300), open).unwrap();
    assert!(guard.lost.is_none(), "{:?}", guard.lost);
    assert!(!timeout.timed_out(), "not done in five minutes");
    let full: Vec<Instant> = guard.steps.iter().filter(|s| s.1 == n as usize).map(|s| s.0).collect();
    let mut gaps: Vec<f64> = full.windows(2).map(|w| (w[1] - w[0]).as_secs_f64()).collect();
    gaps.sort_by(f64::total_cmp);
    let decode = gaps.get(gaps.len() / 2).copied().unwrap_or(f64::NAN);
    let prefill = full.first().map_or(f64::NAN, |f| (*f - begin).as_secs_f64());
    (prefill, decode, begin.elapsed().as_secs_f64())
}
