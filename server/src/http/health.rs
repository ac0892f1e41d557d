//! Probes and figures: /health, /ready, /ping, /version, /load, /metrics.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, Response, StatusCode, header};
use serde_json::json;

use super::error::json_response;
use super::state::{App, AppState, Phase};

/// 200 with an empty body while the engine lives and steps; else 503 with the reason.
pub async fn health(State(state): State<AppState>) -> Response<Body> {
    match trouble(&state) {
        None => Response::new(Body::empty()),
        Some(reason) => unavailable(&reason),
    }
}

/// 200 when new requests are welcome: healthy and not shutting down.
pub async fn ready(State(state): State<AppState>) -> Response<Body> {
    if state.phase() != Phase::Ready {
        return unavailable("shutting down");
    }
    health(State(state)).await
}

/// `{"version": ...}`.
pub async fn version() -> Response<Body> {
    json_response(StatusCode::OK, json!({ "version": env!("CARGO_PKG_VERSION") }).to_string())
}

/// `{"server_load": requests in work}`; they are counted with `--enable-server-load-tracking` only.
pub async fn load(State(state): State<AppState>) -> Response<Body> {
    let counted = state.options.frontend.enable_server_load_tracking;
    let load = if counted { state.metrics.in_work() } else { 0 };
    json_response(StatusCode::OK, json!({ "server_load": load }).to_string())
}

/// Prometheus text.
pub async fn metrics(State(state): State<AppState>) -> Response<Body> {
    let mut response = Response::new(Body::from(state.metrics.render(state.engine.as_ref())));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// Why the engine is unhealthy. An engine that has work and ends no step is, though it lives.
fn trouble(app: &App) -> Option<String> {
    let health = app.engine.health();
    if let Some(failure) = health.failure {
        return Some(failure);
    }
    let stalled = health.open_requests > 0 && health.since_progress > app.options.stall_limit;
    stalled.then(|| {
        format!(
            "no step ended in {:.1} s with {} requests in hand",
            health.since_progress.as_secs_f64(),
            health.open_requests
        )
    })
}

fn unavailable(reason: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(reason.to_string()));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response
}
