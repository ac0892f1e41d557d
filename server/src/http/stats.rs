//! The statistics line that scripts parse, every ten seconds.

use std::time::Duration;

use tokio::time::Instant;

use super::state::AppState;

const INTERVAL: Duration = Duration::from_secs(10);

/// Writes lines until it is dropped. After one at debug level that says that nothing happens it sleeps until a
/// request comes.
pub(super) async fn log_lines(state: AppState) {
    let mut last = Totals::now(&state);
    let mut at = Instant::now();
    let mut was_idle = true;
    loop {
        tokio::time::sleep(INTERVAL).await;
        let now = Totals::now(&state);
        let line = line(&state, &last, &now, at.elapsed());
        let idle = now == last && state.metrics.in_work() == 0;
        if idle && was_idle {
            tracing::debug!("{line}");
        } else {
            tracing::info!("{line}");
        }
        if idle && was_idle {
            state.metrics.work_began().await;
        }
        (last, at, was_idle) = (now, Instant::now(), idle);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Totals {
    prompt_tokens: u64,
    generation_tokens: u64,
}

impl Totals {
    fn now(state: &AppState) -> Totals {
        Totals {
            prompt_tokens: state.metrics.prompt_tokens.get(),
            generation_tokens: state.metrics.generation_tokens.get(),
        }
    }
}

fn line(state: &AppState, last: &Totals, now: &Totals, over: Duration) -> String {
    let stats = state.engine.stats();
    let rate = |new: u64, old: u64| (new - old) as f64 / over.as_secs_f64().max(1e-3);
    let hit_rate = 100.0 * stats.prefix_cache_hits as f64 / stats.prefix_cache_queries.max(1) as f64;
    format!(
        "Engine 000: Avg prompt throughput: {:.1} tokens/s, Avg generation throughput: {:.1} tokens/s, \
         Running: {} reqs, Waiting: {} reqs, GPU KV cache usage: {:.1}%, Prefix cache hit rate: {:.1}%",
        rate(now.prompt_tokens, last.prompt_tokens),
        rate(now.generation_tokens, last.generation_tokens),
        stats.running,
        stats.waiting,
        100.0 * stats.kv_cache_usage,
        hit_rate,
    )
}
