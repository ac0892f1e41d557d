//! What steps allocate and enqueue, and what stays behind after many requests. Alone in their process, and one after
//! the other: they count.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use engine_core::engine::EngineOptions;
use engine_core::engine::types::{OutputSink, Request, RequestId, StepOutputs};
use engine_core::sampling::SamplingParams;
use serde_json::json;
use server::cli::EngineArgs;
use server::http::HttpOptions;
use tests::allocator::{Counting, allocations_here, live_bytes};
use tests::http::{merged, until};
use tests::null::{self, PAGE_BYTES, SOURCE};
use tests::rigged::{Counts, Rig, Rigged};
use tests::server::Server;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const ROWS: u64 = 256;
/// The steps that are looked at: all rows are past their prompts, none ends.
const FIRST_STEP: u64 = 100;
const LAST_STEP: u64 = 1_100;

/// Reads the counters on the engine thread, at the ends of two steps.
struct Watch {
    rig: Arc<Rig>,
    delivered: u64,
    ended: u64,
    allocations: [Arc<AtomicU64>; 2],
    marks: Arc<Mutex<[Option<Counts>; 2]>>,
    done: Sender<()>,
}

impl OutputSink for Watch {
    fn deliver(&mut self, outputs: &mut StepOutputs) {
        self.ended += outputs.rows.iter().filter(|r| r.finish.is_some()).count() as u64;
        outputs.rows.clear();
        for (i, step) in [FIRST_STEP, LAST_STEP].into_iter().enumerate() {
            if self.delivered == step {
                self.marks.lock().unwrap()[i] = Some(self.rig.counts());
                self.allocations[i].store(allocations_here(), Relaxed);
            }
        }
        self.delivered += 1;
        if self.ended == ROWS {
            let _ = self.done.send(());
        }
    }
    fn engine_lost(&mut self, reason: &str) {
        panic!("lost: {reason}");
    }
}

/// Engine thread, scheduler and runner over the do-nothing backend: 256 rows decode 1,000 steps.
#[test]
fn a_plain_decode_step_allocates_nothing_and_is_one_upload_one_launch_one_download() {
    let _alone = ONE_AT_A_TIME.lock().unwrap();
    let (backend, rig) = Rigged::new(null::backend());
    let (done, all_done) = channel();
    let (allocations, marks) = ([Arc::default(), Arc::default()], Arc::new(Mutex::new([None; 2])));
    let sink =
        Watch { rig, delivered: 0, ended: 0, allocations: allocations.clone(), marks: marks.clone(), done };
    let options = EngineOptions { max_num_batched_tokens: Some(8_192), ..EngineOptions::default() };
    let running =
        engine_core::engine::start(backend, &null::config(2_048), &SOURCE, &options, Box::new(sink), &|_| {})
            .unwrap();
    for i in 0..ROWS {
        let request = Request {
            id: RequestId(i),
            prompt: vec![11; 20 + i as usize % 16].into(),
            params: SamplingParams { seed: i, max_tokens: 1_400, ..SamplingParams::default() },
            priority: 0,
            cache_salt: None,
            arrival: Instant::now(),
        };
        running.handle.submit(request).unwrap();
    }
    all_done.recv_timeout(Duration::from_secs(120)).unwrap();
    running.handle.stop();
    let [first, last] = marks.lock().unwrap().map(Option::unwrap);
    let steps = LAST_STEP - FIRST_STEP;
    let per_window = |of: fn(&Counts) -> u64| of(&last) - of(&first);
    assert_eq!(per_window(|c| c.uploads), steps, "uploads in {steps} steps");
    assert_eq!(per_window(|c| c.replays), steps, "launches in {steps} steps");
    assert_eq!(per_window(|c| c.downloads), steps, "downloads in {steps} steps");
    assert_eq!(per_window(|c| c.ops) + per_window(|c| c.captures), 0, "nothing is launched op by op");
    let [before, after] = allocations.map(|a: Arc<AtomicU64>| a.load(Relaxed));
    assert!(before > 0, "the counter does not count");
    assert_eq!(after - before, 0, "allocations of the engine thread in {steps} steady steps");
}

/// 200,000, or as many as `MEMORY_REQUESTS` says.
fn requests() -> u64 {
    std::env::var("MEMORY_REQUESTS").ok().map_or(200_000, |n| n.parse().expect("MEMORY_REQUESTS is a number"))
}

/// Requests of all kinds through the whole HTTP surface and a real engine loop. What is live must not grow with their
/// number: the bound is what one open request holds, not a share of what went by.
#[test]
fn memory_is_flat_over_many_requests() {
    let _alone = ONE_AT_A_TIME.lock().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let args = EngineArgs {
        max_num_seqs: Some(64),
        kv_cache_memory_bytes: Some(600 * PAGE_BYTES),
        ..EngineArgs::default()
    };
    let server = runtime.block_on(async { Server::start(args, HttpOptions::default(), 256) });
    let (mut live, count) = (Vec::new(), requests());
    for part in 0..10 {
        runtime.block_on(round(&server, part, count / 10));
        live.push(live_bytes());
    }
    println!("live bytes after each {} requests: {live:?}", count / 10);
    // The first parts fill page tables, histories and pools to their bounds.
    let growth = live[9] - live[3];
    assert!(growth < 64 << 10, "{growth} bytes more after {} requests: {live:?}", count * 6 / 10);
}

async fn round(server: &Arc<Server>, part: u64, count: u64) {
    let lanes = (0..16).map(|lane| {
        let server = server.clone();
        tokio::spawn(async move {
            for i in (lane..count).step_by(16) {
                one(&server, part * count + i).await;
            }
        })
    });
    for lane in lanes.collect::<Vec<_>>() {
        lane.await.unwrap();
    }
    until("the end of all requests", || server.is_idle()).await;
}

async fn one(server: &Server, i: u64) {
    let prompt = format!("request {i}");
    let base = json!({"prompt": prompt, "max_tokens": 1 + i % 7});
    let (extra, status) = match i % 16 {
        0 => (json!({"stream": true}), 200),
        1 => (json!({"n": 3, "logprobs": 2}), 200),
        2 => (json!({"temperature": -1}), 400),
        3 => (json!({"model": format!("no-such-model-{i}")}), 404),
        4 => (json!({"stop": "x", "seed": i}), 200),
        5 => (json!({"cache_salt": format!("tenant-{i}")}), 200),
        6 => (json!({"logit_bias": {"65": 1.0}, "repetition_penalty": 1.1}), 200),
        7 => return server.hang_up(&merged(base, &json!({"stream": true, "max_tokens": 100}))).await,
        _ => (json!({}), 200),
    };
    let answer = server.complete(merged(base, &extra)).await;
    assert_eq!(answer.status, status, "{}", answer.body);
}
