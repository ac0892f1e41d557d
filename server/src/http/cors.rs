//! Cross-origin answers (`--allowed-origins` and its siblings). Without origins, none of these headers is sent.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};

use crate::cli::FrontendArgs;

const ALL_METHODS: &str = "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT";
const MAX_AGE_S: u32 = 600;

/// What other origins may do.
#[derive(Debug, Default)]
pub struct Cors {
    origins: Vec<String>,
    methods: Vec<String>,
    headers: Vec<String>,
    credentials: bool,
}

impl Cors {
    /// From the flags.
    pub fn new(args: &FrontendArgs) -> Self {
        Cors {
            origins: args.allowed_origins.clone(),
            methods: args.allowed_methods.clone(),
            headers: args.allowed_headers.clone(),
            credentials: args.allow_credentials,
        }
    }

    /// The answer to a preflight request; `None` when this is not one.
    pub fn preflight<B>(&self, request: &Request<B>) -> Option<Response<Body>> {
        let headers = request.headers();
        let asked = headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)?;
        let origin = headers.get(header::ORIGIN)?;
        if self.origins.is_empty() || request.method() != Method::OPTIONS {
            return None;
        }
        let method_ok =
            any(&self.methods) || asked.to_str().is_ok_and(|m| self.methods.iter().any(|a| a == m));
        let Some(allowed) = self.allowed_origin(origin).filter(|_| method_ok) else {
            let mut refusal = Response::new(Body::from("Disallowed CORS origin or method"));
            *refusal.status_mut() = StatusCode::BAD_REQUEST;
            return Some(refusal);
        };
        let mut response = Response::new(Body::empty());
        let out = response.headers_mut();
        self.put_origin(out, allowed);
        let methods = if any(&self.methods) { ALL_METHODS.to_string() } else { self.methods.join(", ") };
        put(out, header::ACCESS_CONTROL_ALLOW_METHODS, &methods);
        if !any(&self.headers) {
            put(out, header::ACCESS_CONTROL_ALLOW_HEADERS, &self.headers.join(", "));
        } else if let Some(wanted) = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
            out.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
        }
        out.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from(MAX_AGE_S));
        Some(response)
    }

    /// Adds the headers of a plain answer to a request from `origin`.
    pub fn decorate(&self, origin: Option<&HeaderValue>, out: &mut HeaderMap) {
        if let Some(allowed) = origin.and_then(|o| self.allowed_origin(o)) {
            self.put_origin(out, allowed);
        }
    }

    fn allowed_origin(&self, origin: &HeaderValue) -> Option<HeaderValue> {
        if any(&self.origins) {
            // A browser refuses the wildcard together with credentials.
            return Some(if self.credentials { origin.clone() } else { HeaderValue::from_static("*") });
        }
        let name = origin.to_str().ok()?;
        self.origins.iter().any(|o| o == name).then(|| origin.clone())
    }

    fn put_origin(&self, out: &mut HeaderMap, allowed: HeaderValue) {
        if allowed != "*" {
            out.append(header::VARY, HeaderValue::from_static("Origin"));
        }
        out.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        if self.credentials {
            out.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
    }
}

fn any(list: &[String]) -> bool {
    list.iter().any(|x| x == "*")
}

fn put(out: &mut HeaderMap, name: header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        out.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn cors(origins: &[&str], credentials: bool) -> Cors {
        let allowed_origins = origins.iter().map(|o| o.to_string()).collect();
        Cors::new(&FrontendArgs { allowed_origins, allow_credentials: credentials, ..Default::default() })
    }

    fn answer(cors: &Cors, origin: &str) -> Option<String> {
        let mut out = HeaderMap::new();
        cors.decorate(Some(&origin.parse().unwrap()), &mut out);
        out.get(header::ACCESS_CONTROL_ALLOW_ORIGIN).map(|v| v.to_str().unwrap().to_string())
    }

    #[test]
    fn origins_are_matched() {
        assert_eq!(answer(&cors(&[], false), "http://a"), None);
        assert_eq!(answer(&cors(&["*"], false), "http://a").as_deref(), Some("*"));
        assert_eq!(answer(&cors(&["*"], true), "http://a").as_deref(), Some("http://a"));
        assert_eq!(answer(&cors(&["http://a"], false), "http://a").as_deref(), Some("http://a"));
        assert_eq!(answer(&cors(&["http://a"], false), "http://b"), None);
    }

    #[test]
    fn preflight_is_answered() {
        let request = |origin: &str| {
            Request::options("/v1/completions")
                .header("origin", origin)
                .header("access-control-request-method", "POST")
                .header("access-control-request-headers", "content-type")
                .body(())
                .unwrap()
        };
        let cors = cors(&["http://a"], false);
        let ok = cors.preflight(&request("http://a")).unwrap();
        assert_eq!(ok.status(), 200);
        assert_eq!(ok.headers()["access-control-allow-headers"], "content-type");
        assert_eq!(cors.preflight(&request("http://b")).unwrap().status(), 400);
        assert!(Cors::default().preflight(&request("http://a")).is_none());
    }
}
