//! Which path goes where, and what surrounds every answer: key check, CORS, request id, counting, access log.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::http::header::CONTENT_LENGTH;
use axum::http::{HeaderMap, HeaderValue, Request, Response, Uri};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use futures_util::FutureExt;
use hyper::body::Body as _;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;

use super::auth::Admission;
use super::error::{ApiError, no_such_method, no_such_path, unauthorized};
use super::metrics::Route;
use super::state::AppState;
use super::{health, ids, openapi};
use crate::openai::{chat, completions, models, tokenize};

/// The whole HTTP surface as one function from request to response. Sockets and tests both call it.
#[derive(Clone)]
pub struct Front {
    state: AppState,
    router: TowerToHyperService<Router>,
}

const REQUEST_ID: &str = "x-request-id";

impl Front {
    /// All routes over this state.
    pub fn new(state: AppState) -> Front {
        let mut router = Router::new()
            .route("/v1/completions", post(completions::handle))
            .route("/v1/chat/completions", post(chat::handle))
            .route("/v1/models", get(models::list))
            .route("/v1/models/{*name}", get(models::one))
            .route("/tokenize", post(tokenize::tokenize))
            .route("/detokenize", post(tokenize::detokenize))
            .route("/health", get(health::health))
            .route("/ready", get(health::ready))
            .route("/ping", get(health::health).post(health::health))
            .route("/version", get(health::version))
            .route("/load", get(health::load))
            .route("/metrics", get(health::metrics));
        if !state.options.frontend.disable_openapi {
            router = router.route("/openapi.json", get(openapi::document));
        }
        let router = router
            .fallback(async || no_such_path())
            .method_not_allowed_fallback(async || no_such_method())
            .with_state(state.clone());
        Front { state, router: TowerToHyperService::new(router) }
    }

    /// Answers one request. `peer` names the client in the access log.
    pub async fn answer(&self, mut request: Request<Body>, peer: &str) -> Response<Body> {
        let start = Instant::now();
        let frontend = &self.state.options.frontend;
        strip_root_path(&mut request, &frontend.root_path);
        let method = request.method().clone();
        let path = request.uri().path().to_string();
        let origin = request.headers().get("origin").cloned();
        let request_id = request.headers().get(REQUEST_ID).cloned();
        let request_bytes = content_length(request.headers());

        let mut response = self.routed(request, &path).await;

        let headers = response.headers_mut();
        self.state.cors.decorate(origin.as_ref(), headers);
        if frontend.enable_request_id_headers {
            let id = request_id.or_else(|| HeaderValue::from_str(&ids::random_hex()).ok());
            headers.extend(id.map(|id| (axum::http::HeaderName::from_static(REQUEST_ID), id)));
        }
        let status = response.status().as_u16();
        if let Some(route) = Route::of(&path) {
            let response_bytes = response.body().size_hint().exact().unwrap_or(0);
            self.state.metrics.http.observe(route, method.as_str(), status, start.elapsed());
            self.state.metrics.http.observe_sizes(route, request_bytes, response_bytes);
        }
        if !frontend.disable_access_log && !frontend.disable_access_log_for_endpoints.contains(&path) {
            tracing::info!(target: "access", "{peer} - \"{method} {path} HTTP/1.1\" {status}");
        }
        response
    }

    async fn routed(&self, mut request: Request<Body>, path: &str) -> Response<Body> {
        if let Some(answer) = self.state.cors.preflight(&request) {
            return answer;
        }
        match self.state.keys.admit(request.method(), path, request.headers()) {
            Admission::Open => {}
            Admission::Bearer(key) => drop(request.extensions_mut().insert(key)),
            Admission::Refused => return unauthorized(),
        }
        // A panic in one request's own work ends that request only.
        match AssertUnwindSafe(self.router.call(request)).catch_unwind().await {
            Ok(Ok(response)) => response,
            Ok(Err(never)) => match never {},
            Err(_) => ApiError::internal("The request could not be processed.").into_response(),
        }
    }
}

/// The announced length of a body; 0 where none is.
fn content_length(headers: &HeaderMap) -> u64 {
    headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok()).unwrap_or(0)
}

/// A proxy may or may not have removed its prefix.
fn strip_root_path(request: &mut Request<Body>, root: &str) {
    if root.is_empty() {
        return;
    }
    let uri = request.uri();
    let Some(rest) = uri.path_and_query().and_then(|p| p.as_str().strip_prefix(root)) else { return };
    if let Ok(stripped) = rest.parse::<Uri>()
        && rest.starts_with('/')
    {
        *request.uri_mut() = stripped;
    }
}
