//! The scheduler under a seeded simulation: random engines and loads, a device of digests, every invariant checked
//! at each step (docs/reliability.md, line 10).
//!
//! A failure prints its seed. To replay it alone, put the seed into [`REPLAY`].

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod checks;
mod device;
mod oracle;
mod setup;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use engine_core::kv::faults::Fault;
use world::{Coverage, Violation, World};

/// Runs only this seed when set.
const REPLAY: Option<u64> = None;

/// Engines simulated; together they take at least [`LEAST_STEPS`]. `SIMULATION_SEEDS` asks for more.
const SEEDS: u64 = 9_000;
const LEAST_STEPS: u64 = 1_000_000;

/// Runs one engine to its end; panics of the scheduler are violations too.
fn simulate(seed: u64, fault: Option<Fault>) -> Result<Coverage, Violation> {
    let run = AssertUnwindSafe(|| World::new(seed, fault).run());
    catch_unwind(run).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        Err(format!("panic: {}", text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("unknown")))
    })
}

#[test]
fn every_invariant_holds_at_each_of_a_million_steps() {
    if let Some(seed) = REPLAY {
        println!("{:?}", simulate(seed, None).unwrap_or_else(|v| panic!("seed {seed}: {v}")));
        return;
    }
    let seeds = seeds();
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64).min(8);
    let total = std::thread::scope(|scope| {
        let share =
            |t| scope.spawn(move || (t..seeds).step_by(threads as usize).map(run_seed).fold(zero(), add));
        let shares: Vec<_> = (0..threads).map(share).collect();
        shares.into_iter().map(|s| s.join().expect("a seed failed, see above")).fold(zero(), add)
    });
    println!("{total:?}");
    assert!(total.steps >= LEAST_STEPS, "only {} steps: raise SEEDS", total.steps);
    assert_everything_happened(&total);
}

fn seeds() -> u64 {
    let asked = std::env::var("SIMULATION_SEEDS");
    asked.map_or(SEEDS, |n| n.parse::<u64>().expect("SIMULATION_SEEDS is a number").max(SEEDS))
}

fn run_seed(seed: u64) -> Coverage {
    simulate(seed, None).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"))
}

fn zero() -> Coverage {
    Coverage::default()
}

fn add(a: Coverage, b: Coverage) -> Coverage {
    Coverage {
        steps: a.steps + b.steps,
        ended: a.ended + b.ended,
        aborted_waiting: a.aborted_waiting + b.aborted_waiting,
        aborted_running: a.aborted_running + b.aborted_running,
        refused: a.refused + b.refused,
        preempted: a.preempted + b.preempted,
        resumed: a.resumed + b.resumed,
        cached_tokens: a.cached_tokens + b.cached_tokens,
        ended_unseen: a.ended_unseen + b.ended_unseen,
        ended_while_preempted: a.ended_while_preempted + b.ended_while_preempted,
        drafts_accepted: a.drafts_accepted + b.drafts_accepted,
        drafts_refused: a.drafts_refused + b.drafts_refused,
        drafts_of_preempted: a.drafts_of_preempted + b.drafts_of_preempted,
        ended_among_drafts: a.ended_among_drafts + b.ended_among_drafts,
        feeds_changed: a.feeds_changed + b.feeds_changed,
        window_pages_freed: a.window_pages_freed + b.window_pages_freed,
        partial_prompts: a.partial_prompts + b.partial_prompts,
    }
}

/// A simulation in which nothing happens proves nothing.
fn assert_everything_happened(total: &Coverage) {
    let counts = [
        ("requests ended", total.ended, 100_000),
        ("waiting requests aborted", total.aborted_waiting, 1_000),
        ("running requests aborted", total.aborted_running, 1_000),
        ("requests refused", total.refused, 1_000),
        ("requests preempted", total.preempted, 10_000),
        ("requests resumed", total.resumed, 10_000),
        ("tokens from the prefix cache", total.cached_tokens, 100_000),
        ("requests that ended unseen", total.ended_unseen, 10_000),
        ("requests that ended while preempted", total.ended_while_preempted, 100),
        ("drafts accepted", total.drafts_accepted, 100_000),
        ("drafts refused", total.drafts_refused, 10_000),
        ("rows preempted while their drafts were verified", total.drafts_of_preempted, 100),
        ("requests that ended among accepted drafts", total.ended_among_drafts, 1_000),
        ("rows that changed between device and host", total.feeds_changed, 10_000),
        ("pages freed behind a window", total.window_pages_freed, 10_000),
        ("prompts cut into chunks", total.partial_prompts, 10_000),
    ];
    for (what, count, least) in counts {
        assert!(count >= least, "only {count} {what}, at least {least} are wanted");
    }
}

#[cfg(debug_assertions)]
#[test]
fn planted_faults_are_noticed() {
    let faults = [
        Fault::ShareWithoutReference,
        Fault::KeepEvictedContent,
        Fault::FreeInsideWindow,
        Fault::LeakLastPage,
        Fault::LoseDelta,
        Fault::RegisterEarly,
        Fault::IgnoreSalt,
        Fault::DropInFlight,
        Fault::ResumeTooSoon,
        Fault::KeepRefusedDrafts,
        Fault::NoPagesForDrafts,
    ];
    for fault in faults {
        let caught =
            (0..500).find_map(|seed| simulate(seed, Some(fault)).err().map(|violation| (seed, violation)));
        let (seed, violation) = caught.unwrap_or_else(|| panic!("{fault:?} goes unnoticed in 500 seeds"));
        println!("{fault:?}: seed {seed}: {violation}");
    }
}
