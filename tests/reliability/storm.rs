//! Thousands of requests that are aborted, dropped and left alone at random: everything is free at the end.

use engine_core::engine::EngineOptions;
use engine_core::engine::types::{FinishReason, RequestId};
use engine_core::sampling::SamplingParams;
use tests::engine::TestEngine;
use tests::null::{self, PAGE_BYTES, SOURCE, expected};
use tests::rng::Rng;

const REQUESTS: u64 = 10_000;

#[test]
fn ten_thousand_requests_with_aborts_at_random_leave_nothing_behind() {
    let options = EngineOptions {
        max_num_seqs: Some(32),
        max_num_batched_tokens: Some(128),
        // 60 pages for 32 rows of up to 20 pages: preemptions too.
        kv_cache_memory_bytes: Some(60 * PAGE_BYTES),
        ..EngineOptions::default()
    };
    let e = TestEngine::start(null::backend(), &null::config(512), &SOURCE, &options);
    let mut rng = Rng::new(5);
    let mut open: Vec<Open> = Vec::new();
    let mut aborted = 0;
    for seed in 0..REQUESTS {
        let (prompt, max_tokens) = (rng.between(1, 200) as usize, rng.between(1, 120));
        let params = SamplingParams { seed, max_tokens, ..SamplingParams::default() };
        let ids: Vec<u32> = (0..prompt as u32).map(|t| 10 + t % 97).collect();
        let id = e.submit(&ids, params);
        let abort = rng.percent(40);
        open.push((id, (!abort).then_some((seed, prompt, max_tokens))));
        if abort {
            // At once, or when it may be running, or after its end, or twice.
            let victim = if rng.percent(50) { id } else { open[rng.number() as usize % open.len()].0 };
            if let Some(o) = open.iter_mut().find(|o| o.0 == victim) {
                o.1 = None;
            }
            e.running.handle.abort(victim);
            aborted += 1;
        }
        if open.len() == 500 {
            settle(&e, &mut open);
        }
    }
    settle(&e, &mut open);
    let stats = e.stats();
    assert_eq!((stats.running, stats.waiting, stats.kv_pages_used), (0, 0, 0), "{stats:?}");
    assert_eq!(e.running.handle.queued(), 0);
    assert!(stats.preemptions > 0 && aborted > 3_000, "{} preemptions, {aborted} aborts", stats.preemptions);
}

/// A submitted request, with its seed, prompt length and tokens unless it was aborted.
type Open = (RequestId, Option<(u64, usize, u32)>);

/// Waits for all of them. Who was not aborted has exactly what it would have had alone.
fn settle(e: &TestEngine, open: &mut Vec<Open>) {
    let ids: Vec<RequestId> = open.iter().map(|o| o.0).collect();
    for (got, (id, whole)) in e.wait(&ids).into_iter().zip(open.drain(..)) {
        assert_eq!(got.ends, 1, "{id:?}");
        if let Some((seed, prompt, tokens)) = whole {
            assert_eq!(got.finish, Some(FinishReason::Length), "{id:?}");
            assert_eq!(got.tokens, expected(seed, prompt, tokens), "{id:?}");
        }
    }
}
