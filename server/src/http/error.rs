//! Every error a client can see, in the shape its SDK expects:
//! `{"error": {"message", "type", "param", "code"}}` with `code` equal to the HTTP status.

use std::borrow::Cow;

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use engine_core::engine::types::{EngineFailure, Refused};
use serde_json::json;

/// Seconds after which a client that met a bound may try again.
const RETRY_AFTER_S: u32 = 1;

/// One error answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    pub status: StatusCode,
    /// The `type` field. `Bad Request` when the body's schema rejects, `BadRequestError` when a later check does;
    /// clients switch on both.
    pub kind: &'static str,
    pub message: String,
    pub param: Option<Cow<'static, str>>,
    /// Sets the `Retry-After` header.
    pub retry_after_s: Option<u32>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        ApiError { status, kind, message: message.into(), param: None, retry_after_s: None }
    }

    /// The body is not what the endpoint's schema says: 400 `Bad Request`.
    pub fn schema(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "Bad Request", message)
    }

    /// A value is well formed and not allowed: 400 `BadRequestError`.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequestError", message)
    }

    /// The model does not exist: 404.
    pub fn unknown_model(name: &str) -> Self {
        let message = format!("The model `{name}` does not exist.");
        Self::new(StatusCode::NOT_FOUND, "NotFoundError", message).with_param("model")
    }

    /// Not there (yet): 501.
    pub fn not_implemented(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, "NotImplementedError", message)
    }

    /// Our own fault: 500.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", message)
    }

    /// Shutting down: 503, to be sent elsewhere.
    pub fn shutting_down() -> Self {
        let message = "The server is shutting down.";
        let mut error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailableError", message);
        error.retry_after_s = Some(RETRY_AFTER_S);
        error
    }

    /// One key has as many sequences in work as it may: 429.
    pub fn key_limit(open: usize, limit: usize) -> Self {
        let message = format!(
            "This key has {open} sequences in work and may have {limit} (--max-num-seqs-per-key). Try again when \
             some have ended."
        );
        let mut error = Self::new(StatusCode::TOO_MANY_REQUESTS, "Too Many Requests", message);
        error.retry_after_s = Some(RETRY_AFTER_S);
        error
    }

    /// Larger than the server takes: 413.
    pub fn too_large(limit_bytes: usize) -> Self {
        let message = format!("The request body is larger than {limit_bytes} bytes.");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "Bad Request", message)
    }

    /// Names the field at fault.
    pub fn with_param(mut self, param: impl Into<Cow<'static, str>>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// The body as JSON text.
    pub fn body(&self) -> String {
        let error = json!({
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.status.as_u16(),
        });
        json!({ "error": error }).to_string()
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        let message = refused.to_string();
        match refused {
            Refused::QueueFull { .. } | Refused::QueueTokensFull { .. } => {
                let mut error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable", message);
                error.retry_after_s = Some(RETRY_AFTER_S);
                error
            }
            Refused::NeverFits(_) => Self::invalid(message).with_param("input_tokens"),
            Refused::NotRunning => Self::internal(message),
        }
    }
}

impl From<EngineFailure> for ApiError {
    fn from(failure: EngineFailure) -> Self {
        match failure {
            EngineFailure::DeviceLost => Self::internal("The engine lost its device."),
            EngineFailure::ShuttingDown => Self::shutting_down(),
            EngineFailure::Dropped => Self::internal("The engine dropped the request without an answer."),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response<Body> {
        let mut response = json_response(self.status, self.body());
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// A JSON answer.
pub fn json_response(status: StatusCode, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// 401: a string in place of the object, as vLLM answers.
pub fn unauthorized() -> Response<Body> {
    json_response(StatusCode::UNAUTHORIZED, r#"{"error":"Unauthorized"}"#)
}

/// 404 of a path that is no route.
pub fn no_such_path() -> Response<Body> {
    json_response(StatusCode::NOT_FOUND, r#"{"detail":"Not Found"}"#)
}

/// 405.
pub fn no_such_method() -> Response<Body> {
    json_response(StatusCode::METHOD_NOT_ALLOWED, r#"{"detail":"Method Not Allowed"}"#)
}
