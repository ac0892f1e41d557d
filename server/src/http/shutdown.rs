//! From the first signal to the last byte.
//!
//! First signal: /ready answers 503, new work is refused, open answers go on for at most `--shutdown-timeout`.
//! Then the rest get a typed final event. A second signal ends all of it at once.

use std::process::ExitCode;
use std::time::Duration;

use engine_core::engine::types::EngineFailure;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::limits;
use super::state::{AppState, Phase};

/// How the server came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All answers were finished or ended with a typed event.
    Drained,
    /// A second signal cut it short.
    Forced,
    /// The engine is gone; what was open got a typed event.
    EngineLost,
}

impl From<Ended> for ExitCode {
    /// Success only for an end that was asked for and waited for.
    fn from(ended: Ended) -> ExitCode {
        match ended {
            Ended::Drained => ExitCode::SUCCESS,
            Ended::Forced | Ended::EngineLost => ExitCode::FAILURE,
        }
    }
}

const POLL: Duration = Duration::from_millis(10);

/// SIGTERM and SIGINT, each as one message.
///
/// # Errors
/// When the operating system refuses a handler.
pub fn signals() -> std::io::Result<mpsc::Receiver<()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (sender, receiver) = mpsc::channel(2);
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        loop {
            tokio::select! { _ = term.recv() => {}, _ = interrupt.recv() => {} }
            if sender.send(()).await.is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

/// Waits for a signal and brings the server down.
pub(super) async fn wait(state: &AppState, mut signals: mpsc::Receiver<()>) -> Ended {
    if signals.recv().await.is_none() {
        // Nobody can send one any more: serve until the task is dropped.
        std::future::pending::<()>().await;
    }
    let ended = tokio::select! {
        () = drain(state) => Ended::Drained,
        Some(()) = signals.recv() => Ended::Forced,
    };
    state.phase.send_replace(Phase::Closed);
    ended
}

/// The engine is gone and all streams have failed. Probes and clients get a moment to learn so, then the server
/// ends: what restarts the process must not have to guess.
pub(super) async fn after_loss(state: &AppState) -> Ended {
    tracing::error!("the engine is gone; the server ends in {:?}", limits::CLOSE_GRACE);
    state.phase.send_if_modified(|phase| {
        let ready = *phase == Phase::Ready;
        if ready {
            *phase = Phase::Draining;
        }
        ready
    });
    sleep(limits::CLOSE_GRACE).await;
    state.phase.send_replace(Phase::Closed);
    Ended::EngineLost
}

async fn drain(state: &AppState) {
    let limit_s = state.options.frontend.shutdown_timeout_s.max(0.0);
    let limit = Duration::try_from_secs_f64(limit_s).unwrap_or(Duration::MAX);
    state.phase.send_replace(Phase::Draining);
    let open = state.metrics.in_work();
    tracing::info!("shutting down: {open} requests are open, waiting at most {limit_s} s for them");
    if idle_within(state, limit).await {
        return;
    }
    state.phase.send_replace(Phase::Expired);
    let failed = state.fanout.fail_open(EngineFailure::ShuttingDown);
    tracing::warn!("shutting down: {} sequences did not finish in {limit_s} s and were ended", failed.len());
    for id in failed {
        state.engine.abort(id);
    }
    idle_within(state, limits::CLOSE_GRACE).await;
}

async fn idle_within(state: &AppState, limit: Duration) -> bool {
    let start = Instant::now();
    while state.metrics.in_work() > 0 {
        if start.elapsed() >= limit {
            return false;
        }
        sleep(POLL).await;
    }
    true
}
