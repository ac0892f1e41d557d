//! Host time of a whole engine step at 256 rows on the do-nothing backend: schedule, pack, upload, replay, download,
//! commit, deliver. `cargo bench -p tests --bench step`. The target is 100 us for scheduling and packing; all of the
//! step is timed, so the figure is an upper bound.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::mpsc::{Sender, channel};
use std::time::Instant;

use engine_core::engine::EngineOptions;
use engine_core::engine::types::{OutputSink, Request, RequestId, StepOutputs};
use engine_core::sampling::SamplingParams;
use tests::null::{self, SOURCE};

const STEPS: usize = 4_000;

/// Notes the time of each delivery: on the engine thread, once a step.
struct Stopwatch {
    at: Vec<Instant>,
    open: usize,
    done: Sender<Vec<Instant>>,
}

impl OutputSink for Stopwatch {
    fn deliver(&mut self, outputs: &mut StepOutputs) {
        self.open -= outputs.rows.iter().filter(|r| r.finish.is_some()).count();
        outputs.rows.clear();
        self.at.push(Instant::now());
        if self.open == 0 {
            let _ = self.done.send(std::mem::take(&mut self.at));
        }
    }
    fn engine_lost(&mut self, reason: &str) {
        panic!("lost: {reason}");
    }
}

fn main() {
    for rows in [1, 32, 256, 1_024] {
        report(rows);
    }
}

fn report(rows: u32) {
    let (done, all_done) = channel();
    let sink = Stopwatch { at: Vec::with_capacity(2 * STEPS), open: rows as usize, done };
    let options = EngineOptions {
        max_num_seqs: Some(rows),
        max_num_batched_tokens: Some(rows.max(64) * 32),
        ..EngineOptions::default()
    };
    let config = null::config(STEPS as u32 + 1_000);
    let backend = null::backend();
    let running =
        engine_core::engine::start(backend, &config, &SOURCE, &options, Box::new(sink), &|_| {}).unwrap();
    for i in 0..rows {
        let request = Request {
            id: RequestId(u64::from(i)),
            prompt: vec![11; 16 + i as usize % 16].into(),
            params: SamplingParams {
                seed: u64::from(i),
                max_tokens: STEPS as u32 + 500,
                ..SamplingParams::default()
            },
            priority: 0,
            cache_salt: None,
            arrival: Instant::now(),
        };
        running.handle.submit(request).unwrap();
    }
    let at = all_done.recv().unwrap();
    running.handle.stop();
    let mut times: Vec<f64> =
        at[200..200 + STEPS].windows(2).map(|w| (w[1] - w[0]).as_secs_f64() * 1e6).collect();
    times.sort_by(f64::total_cmp);
    let share = |share: f64| times[(times.len() as f64 * share) as usize];
    println!("{rows:>5} rows: median {:.1} us, p99 {:.1} us a step", share(0.5), share(0.99));
}
