//! Host time of one decode step in the scheduler: plan and commit, without packing. `cargo bench -p tests --bench
//! scheduler`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Instant;

use engine_core::kv::{GroupKind, GroupSpec, PrefixCaching};
use engine_core::scheduler::SchedulerConfig;
use tests::load::Load;

const STEPS: usize = 4_000;

fn main() {
    let full = GroupSpec { kind: GroupKind::Full, page_tokens: 16 };
    let window = GroupSpec { kind: GroupKind::Window { tokens: 1_024 }, page_tokens: 16 };
    for rows in [1, 32, 256, 1_024] {
        report("staggered, one group", rows, vec![full], 1);
        report("staggered, full and window group", rows, vec![full, window], 1);
        report("all rows fill a page in the same step", rows, vec![full], 0);
    }
}

/// Times `STEPS` steps with all rows decoding; prompts differ in length by `stagger` tokens.
fn report(what: &str, rows: u32, groups: Vec<GroupSpec>, stagger: u32) {
    let longest = STEPS as u32 + 1_000;
    let pages = groups.len() as u32 * rows * longest.div_ceil(16) + 100;
    let mut load =
        Load::new(SchedulerConfig::new(rows, 16_384, 16_384), groups, pages, PrefixCaching::AllPages);
    (0..rows).for_each(|i| load.add(512 + i * stagger % 16, longest - 600));
    while load.plan.generated_rows < rows {
        load.step();
    }
    let mut times: Vec<f64> = (0..STEPS)
        .map(|_| {
            let start = Instant::now();
            load.step();
            start.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    assert_eq!(load.plan.generated_rows, rows, "a row has ended");
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[(STEPS as f64 * share) as usize];
    println!("{rows:>5} rows, {what}: median {:.1} us, p99 {:.1} us a step", at(0.5), at(0.99));
}
