//! KV slots that are allocated but hold nothing stay below 4 % over a mixed load of 256 requests.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use engine_core::kv::{GroupKind, GroupSpec, PrefixCaching};
use engine_core::scheduler::SchedulerConfig;
use tests::load::Load;
use tests::rng::Rng;

const PAGE_TOKENS: u32 = 16;
const REQUESTS: u32 = 256;
const MOST_WASTE: f64 = 0.04;

/// Slots allocated and slots that hold a position's KV, over all rows.
fn slots(load: &Load) -> (u64, u64) {
    let kv = load.scheduler.kv();
    let allocated = u64::from(kv.pool().usable() - kv.pool().free()) * u64::from(PAGE_TOKENS);
    let used = load.plan.rows.iter().map(|row| u64::from(row.start + row.q_len)).sum();
    (allocated, used)
}

/// Runs the load and returns (mean length, waste over all steps, waste of the worst step with a quarter of the load running).
fn run(pages: u32) -> (f64, f64, f64) {
    let config = SchedulerConfig::new(REQUESTS, 2_048, 4_096);
    let groups = vec![GroupSpec { kind: GroupKind::Full, page_tokens: PAGE_TOKENS }];
    let mut load = Load::new(config, groups, pages, PrefixCaching::AllPages);
    let (mut rng, mut tokens) = (Rng::new(3), 0);
    for _ in 0..REQUESTS {
        let lengths = (rng.between(8, 480), rng.between(4, 256));
        tokens += lengths.0 + lengths.1;
        load.add(lengths.0, lengths.1);
    }
    let (mut allocated, mut used, mut worst) = (0, 0, 0.0f64);
    loop {
        load.scheduler.schedule(&mut load.plan);
        if load.plan.is_empty() {
            break;
        }
        let planned = load.scheduler.stats().running == load.plan.rows.len();
        let (a, u) = slots(&load);
        if planned {
            (allocated, used) = (allocated + a, used + u);
        }
        if planned && load.plan.rows.len() >= REQUESTS as usize / 4 {
            worst = worst.max(1.0 - u as f64 / a as f64);
        }
        load.commit_planned();
    }
    let stats = load.scheduler.stats();
    assert_eq!(pages < 4_000, stats.preemptions > 0, "{stats:?}");
    assert!(allocated > 0, "no step ran all running rows");
    (f64::from(tokens) / f64::from(REQUESTS), 1.0 - used as f64 / allocated as f64, worst)
}

#[test]
fn allocated_but_unused_slots_stay_below_four_per_cent() {
    for pages in [9_000, 1_500] {
        let (length, waste, worst) = run(pages);
        println!(
            "{REQUESTS} requests of mean length {length:.0}, {pages} pages of {PAGE_TOKENS}: {:.2} % of the allocated \
             slots are unused, {:.2} % in the worst step",
            waste * 100.0,
            worst * 100.0
        );
        assert!(length >= 300.0, "the load's mean length is {length}");
        assert!(waste <= MOST_WASTE, "{waste} of the slots are unused");
        assert!(worst <= MOST_WASTE, "{worst} of the slots are unused in the worst step");
    }
}
