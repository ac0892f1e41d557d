//! One simulated engine and its load, drawn from a seed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use engine_core::engine::types::{Request, RequestId};
use engine_core::kv::{GroupKind, GroupSpec, KvConfig, PrefixCaching};
use engine_core::sampling::SamplingParams;
use engine_core::scheduler::{ChunkedPrefill, Feed, SchedulerConfig, SchedulingPolicy};

use crate::oracle::{EOS, STOP};
use tests::rng::{Rng, mix};

/// Everything a simulation is made of.
#[derive(Debug)]
pub struct Setup {
    pub config: SchedulerConfig,
    pub kv: KvConfig,
    /// Steps in flight: 1, 2, or 3 as with pipeline stages.
    pub depth: usize,
    pub requests: u32,
    /// Per cent of loop turns in which a request arrives, one is aborted, or a step in flight is waited for early.
    pub arrival: u32,
    pub abort: u32,
    pub early_commit: u32,
    /// Per cent of requests that are fed by the host.
    pub host_fed: u32,
    /// Per cent of loop turns in which a request changes between device and host.
    pub changing: u32,
}

/// An engine of the given seed.
pub fn draw_setup(rng: &mut Rng) -> Setup {
    let groups = draw_groups(rng);
    let max_num_seqs = rng.between(1, 8);
    let max_model_len = rng.between(8, 72);
    let chunked = rng.percent(75);
    let least = if chunked { max_num_seqs } else { max_num_seqs.max(max_model_len) };
    let mut config = SchedulerConfig::new(max_num_seqs, rng.between(least, least + 48), max_model_len);
    config.chunked_prefill = match (chunked, rng.percent(40)) {
        (false, _) => ChunkedPrefill::Off,
        (true, true) => ChunkedPrefill::On { long_prefill_token_threshold: Some(rng.between(1, 20)) },
        (true, false) => ChunkedPrefill::On { long_prefill_token_threshold: None },
    };
    config.max_steps_in_flight = rng.pick(&[1, 2, 2, 3]);
    config.host_wait_share = rng.pick(&[0, 1, 3, 16]);
    config.policy = rng.pick(&[SchedulingPolicy::Fcfs, SchedulingPolicy::Priority]);
    let one: u32 = groups.iter().map(|g| g.most_pages(max_model_len, config.max_num_batched_tokens)).sum();
    let caching = rng.pick(&[
        PrefixCaching::AllPages,
        PrefixCaching::AllPages,
        PrefixCaching::PromptPages,
        PrefixCaching::Off,
    ]);
    // From too small for the longest request to comfortable.
    let most = one * rng.between(1, 5);
    let pages = 2 + groups.len() as u32 + rng.between(one / 2, most);
    Setup {
        depth: config.max_steps_in_flight,
        config,
        kv: KvConfig { groups, pages, prefix_caching: caching, hash_key: [rng.number(), rng.number()] },
        requests: rng.between(20, 60),
        arrival: rng.pick(&[5, 20, 60, 100]),
        abort: rng.pick(&[0, 0, 2, 5]),
        early_commit: rng.pick(&[0, 10]),
        host_fed: rng.pick(&[0, 0, 20, 50, 100]),
        changing: rng.pick(&[0, 0, 5, 20]),
    }
}

fn draw_groups(rng: &mut Rng) -> Vec<GroupSpec> {
    let page_tokens = rng.between(1, 6);
    let count = rng.pick(&[1, 1, 2, 3]);
    let group = |rng: &mut Rng| GroupSpec {
        kind: match rng.percent(50) {
            true => GroupKind::Full,
            false => GroupKind::Window { tokens: rng.between(2, 20) },
        },
        page_tokens: if rng.percent(80) { page_tokens } else { page_tokens * 2 },
    };
    (0..count).map(|_| group(rng)).collect()
}

/// The request of this number; some go on where one of the `ended` sequences stopped, as in a chat.
pub fn draw_request(
    rng: &mut Rng,
    setup: &Setup,
    number: u64,
    ended: &VecDeque<Vec<u32>>,
) -> (Request, Feed) {
    let mut prompt = draw_prompt(rng, setup.config.max_model_len);
    if !ended.is_empty() && rng.percent(25) {
        let earlier = &ended[rng.number() as usize % ended.len()];
        prompt = earlier.iter().chain(&prompt[..1]).copied().collect();
        prompt.truncate(setup.config.max_model_len as usize - 1);
    }
    let max_tokens = if rng.percent(20) { 10_000 } else { rng.between(1, 40) };
    let params = SamplingParams {
        seed: rng.number(),
        max_tokens,
        min_tokens: if rng.percent(30) { rng.between(0, max_tokens.min(12)) } else { 0 },
        eos_token_ids: vec![EOS],
        stop_token_ids: if rng.percent(30) { vec![STOP] } else { Vec::new() },
        ignore_eos: rng.percent(20),
        prompt_logprobs: rng.percent(10).then_some(1),
        ..SamplingParams::default()
    };
    let request = Request {
        id: RequestId(number),
        prompt: prompt.into(),
        params,
        priority: rng.between(0, 2) as i32 - 1,
        cache_salt: rng.pick(&[None, None, Some("a"), Some("b")]).map(Arc::from),
        arrival: Instant::now(),
    };
    (request, if rng.percent(setup.host_fed) { Feed::Host } else { Feed::Device })
}

/// A prefix of one of three documents and a tail of its own.
fn draw_prompt(rng: &mut Rng, max_model_len: u32) -> Vec<u32> {
    let document = u64::from(rng.between(1, 3)) << 32;
    let shared = if rng.percent(70) { rng.between(0, max_model_len) } else { 0 };
    let own = if rng.percent(10) { 0 } else { rng.between(1, 6) };
    let word = |i: u32| 3 + (mix(document | u64::from(i)) % 50) as u32;
    let length = (shared + own).clamp(1, max_model_len - 1);
    (0..length).map(|i| if i < shared { word(i) } else { rng.between(3, 52) }).collect()
}
