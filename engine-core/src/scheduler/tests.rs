//! The scheduler step by step, on examples small enough to follow. The simulation in `tests/scheduler` has the rest.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::time::Instant;

use super::*;
use crate::engine::types::{FinishReason, TokenBatch};
use crate::kv::{GroupKind, GroupSpec, PrefixCaching};
use crate::sampling::SamplingParams;

const EOS: u32 = 9_999;

fn scheduler(pages: u32, change: impl FnOnce(&mut SchedulerConfig)) -> Scheduler {
    let mut config = SchedulerConfig::new(4, 16, 32);
    change(&mut config);
    let groups = vec![GroupSpec { kind: GroupKind::Full, page_tokens: 4 }];
    let kv = KvConfig { groups, pages, prefix_caching: PrefixCaching::AllPages, hash_key: [5, 6] };
    Scheduler::new(config, kv).unwrap()
}

fn request(id: u64, prompt: u32, max_tokens: u32) -> Request {
    Request {
        id: RequestId(id),
        prompt: (0..prompt).map(|i| i + 100 * id as u32).collect::<Arc<[u32]>>(),
        params: SamplingParams { max_tokens, eos_token_ids: vec![EOS], ..SamplingParams::default() },
        priority: 0,
        cache_salt: None,
        arrival: Instant::now(),
    }
}

fn plan(s: &mut Scheduler) -> StepPlan {
    let mut plan = StepPlan::default();
    s.schedule(&mut plan);
    plan
}

/// (request, start, q_len, samples) of each row.
fn rows(plan: &StepPlan) -> Vec<(u64, u32, u32, bool)> {
    plan.rows.iter().map(|r| (r.id.0, r.start, r.q_len, r.sample)).collect()
}

/// Commits `plan` with `token` for every row that sampled.
fn commit(s: &mut Scheduler, plan: &StepPlan, token: u32) -> Vec<CommitOutcome> {
    let sampled = plan.rows.iter().enumerate().filter(|(_, r)| r.sample);
    let results: Vec<_> =
        sampled.map(|(i, _)| RowResult { row: i as u32, tokens: TokenBatch::from(token) }).collect();
    let mut out = Vec::new();
    s.commit(plan.step, &results, &mut out);
    out
}

#[test]
fn a_prompt_is_cut_into_chunks_beside_a_running_row() {
    let mut s = scheduler(50, |_| ());
    s.add(request(1, 3, 8), Feed::Device).unwrap();
    s.add(request(2, 20, 8), Feed::Device).unwrap();
    let first = plan(&mut s);
    assert_eq!(rows(&first), [(1, 0, 3, true), (2, 0, 13, false)]);
    let second = plan(&mut s);
    assert_eq!(rows(&second), [(1, 3, 1, true), (2, 13, 7, true)]);
    assert_eq!((second.generated_rows, second.rows[0].tokens_from), (1, TokenSource::Device));
    assert_eq!(commit(&mut s, &first, 7).len(), 1);
    assert_eq!(s.tokens(RequestId(1)).unwrap().last(), Some(&7));
}

#[test]
fn a_row_that_ended_unseen_runs_once_more_and_its_result_is_dropped() {
    let mut s = scheduler(50, |_| ());
    s.add(request(1, 4, 8), Feed::Device).unwrap();
    let first = plan(&mut s);
    let second = plan(&mut s);
    assert_eq!(rows(&second), [(1, 4, 1, true)]);
    assert_eq!(s.stats().kv_pages_used, 2, "the row owns the page of the token after its end");
    let ended = commit(&mut s, &first, EOS);
    assert_eq!(ended[0].finish, Some(FinishReason::Stop { token: None }));
    assert_eq!((s.stats().kv_pages_used, s.has_work()), (0, false));
    assert_eq!(commit(&mut s, &second, 1), []);
}

#[test]
fn nothing_is_planned_past_the_last_token() {
    let mut s = scheduler(50, |_| ());
    s.add(request(1, 4, 2), Feed::Device).unwrap();
    let (first, second) = (plan(&mut s), plan(&mut s));
    assert_eq!(commit(&mut s, &first, 1)[0].finish, None);
    assert!(plan(&mut s).is_empty());
    assert_eq!(commit(&mut s, &second, 1)[0].finish, Some(FinishReason::Length));
    assert!(!s.has_work());
}

#[test]
fn the_row_admitted_last_is_preempted_and_resumes_with_its_tokens() {
    let mut s = scheduler(6, |c| c.max_steps_in_flight = 1);
    s.add(request(1, 8, 12), Feed::Device).unwrap();
    s.add(request(2, 8, 8), Feed::Device).unwrap();
    let step = plan(&mut s);
    commit(&mut s, &step, 1);
    let step = plan(&mut s);
    assert_eq!(step.preempted, [RequestId(2)]);
    assert_eq!(rows(&step), [(1, 8, 1, true)]);
    commit(&mut s, &step, 1);
    assert_eq!((s.stats().running, s.stats().waiting, s.stats().preemptions), (1, 1, 1));
    assert!(s.abort(RequestId(1)));
    let step = plan(&mut s);
    assert_eq!(step.rows[0].admitted, Some(Admitted { cached_tokens: 8, resumed: true }));
    assert_eq!((rows(&step), step.rows[0].phase), (vec![(2, 8, 1, true)], Phase::Generated));
}

#[test]
fn priority_goes_before_arrival_only_under_its_policy() {
    for (policy, first) in [(SchedulingPolicy::Fcfs, 1), (SchedulingPolicy::Priority, 2)] {
        let mut s = scheduler(50, |c| (c.max_num_seqs, c.policy) = (1, policy));
        s.add(request(1, 4, 2), Feed::Device).unwrap();
        s.add(Request { priority: -1, ..request(2, 4, 2) }, Feed::Device).unwrap();
        assert_eq!(plan(&mut s).rows[0].id, RequestId(first));
    }
}

#[test]
fn a_host_fed_row_waits_for_its_result_and_has_drafts_verified() {
    let mut s = scheduler(50, |_| ());
    s.add(request(1, 4, 9), Feed::Host).unwrap();
    let step = plan(&mut s);
    assert!(plan(&mut s).is_empty());
    commit(&mut s, &step, 1);
    s.propose(RequestId(1), &[2, 3, 4]);
    let step = plan(&mut s);
    assert_eq!(
        (rows(&step), step.rows[0].drafts, step.rows[0].sample_position),
        (vec![(1, 4, 4, true)], 3, 5)
    );
    let mut tokens = TokenBatch::from(2);
    tokens.push(8);
    let mut out = Vec::new();
    s.commit(step.step, &[RowResult { row: 0, tokens }], &mut out);
    assert_eq!(s.tokens(RequestId(1)).unwrap()[4..], [1, 2, 8]);
    assert_eq!(rows(&plan(&mut s)), [(1, 6, 1, true)]);
}

#[test]
fn what_can_never_run_or_wait_is_refused_with_a_reason() {
    let mut s = scheduler(6, |c| (c.max_queued_requests, c.max_queued_tokens) = (2, Some(12)));
    let refusal = |s: &Scheduler, r: Request| s.admit_check(&r).unwrap_err().to_string();
    assert!(refusal(&s, request(1, 0, 4)).contains("needs a prompt"));
    assert!(refusal(&s, request(1, 32, 4)).contains("the prompt has 32 tokens"));
    let text = refusal(&s, request(1, 18, 9));
    assert!(text.contains("needs 7 KV pages; there are 5, enough for 20 tokens"), "{text}");
    s.add(request(1, 8, 4), Feed::Device).unwrap();
    assert!(matches!(
        s.admit_check(&request(2, 8, 4)),
        Err(Refused::QueueTokensFull { queued: 8, limit: 12 })
    ));
    s.add(request(2, 4, 4), Feed::Device).unwrap();
    assert!(matches!(s.admit_check(&request(3, 1, 4)), Err(Refused::QueueFull { queued: 2, limit: 2 })));
    assert!(s.abort(RequestId(2)) && s.admit_check(&request(3, 1, 4)).is_ok());
}
