//! The HTTP server: hyper's connections directly under the routes, no layer in between.

pub mod auth;
pub mod cors;
pub mod error;
mod health;
pub mod ids;
pub mod limits;
pub mod listen;
pub mod metrics;
mod openapi;
pub mod router;
pub mod shutdown;
pub mod sse;
pub mod state;
mod stats;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, mpsc, watch};

pub use listen::{BindError, Listener, bind};
pub use router::Front;
pub use shutdown::{Ended, signals};
pub use state::{App, AppParts, AppState, HttpOptions, Phase};

use listen::Connection;

/// Serves until a shutdown signal (see [`shutdown`]). Runs the fan-out task too.
pub async fn serve(listener: Listener, state: AppState, signals: mpsc::Receiver<()>) -> Ended {
    let mut fanout = tokio::spawn(state.fanout.clone().run());
    let stats = state.options.log_stats.then(|| tokio::spawn(stats::log_lines(state.clone())));
    let accepting = tokio::spawn(accept(listener, state.clone()));
    let ended = tokio::select! {
        ended = shutdown::wait(&state, signals) => ended,
        // It ends when the engine is gone, having failed what was open.
        _ = &mut fanout => shutdown::after_loss(&state).await,
    };
    if ended != Ended::Forced {
        let _ = tokio::time::timeout(limits::CLOSE_GRACE, accepting).await;
    }
    fanout.abort();
    if let Some(stats) = stats {
        stats.abort();
    }
    ended
}

/// Accepts until the server closes, then waits for the connections to end.
async fn accept(listener: Listener, state: AppState) {
    let slots = Arc::new(Semaphore::new(limits::MAX_CONNECTIONS));
    let front = Front::new(state.clone());
    let mut phase = state.phase.subscribe();
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = phase.wait_for(|p| *p >= Phase::Closed) => break,
        };
        match accepted {
            Ok(connection) => {
                let (front, phase) = (front.clone(), state.phase.subscribe());
                tokio::spawn(async move {
                    match connection {
                        Connection::Tcp(stream, peer) => {
                            one_connection(stream, client_name(peer), front, phase).await
                        }
                        Connection::Unix(stream) => one_connection(stream, "unix".into(), front, phase).await,
                    }
                    drop(slot);
                });
            }
            Err(e) => {
                // Out of file handles, mostly: give the open connections a moment to end.
                tracing::warn!("accept failed: {e}");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    let _ = slots.acquire_many(limits::MAX_CONNECTIONS as u32).await;
}

/// A client in the access log; one that came over IPv4 shows as such.
fn client_name(peer: SocketAddr) -> String {
    SocketAddr::new(peer.ip().to_canonical(), peer.port()).to_string()
}

async fn one_connection<S>(stream: S, peer: String, front: Front, mut phase: watch::Receiver<Phase>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request: hyper::Request<hyper::body::Incoming>| {
        let (front, peer) = (&front, &peer);
        async move { Ok::<_, Infallible>(front.answer(request.map(Body::new), peer).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HEAD_TIMEOUT)
        .max_headers(limits::MAX_HEADER_COUNT)
        .max_buf_size(limits::MAX_HEAD_BYTES)
        .writev(false)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let closed = tokio::select! {
        result = connection.as_mut() => Some(result),
        _ = phase.wait_for(|p| *p >= Phase::Closed) => None,
    };
    let result = match closed {
        Some(result) => result,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(e) = result {
        tracing::debug!("{peer}: {e}");
    }
}
