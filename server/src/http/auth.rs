//! `--api-key`: a bearer key for every path that takes a prompt or names the model.

use axum::http::{HeaderMap, Method, header};
use sha2::{Digest, Sha256};

use crate::cli::Secret;

/// Paths that probes and scrapers reach without a key.
const OPEN_PATHS: [&str; 7] =
    ["/health", "/ready", "/ping", "/version", "/metrics", "/load", "/openapi.json"];

/// The keys, as digests: comparing digests takes the same time wherever two keys differ.
#[derive(Debug, Default)]
pub struct Keys(Vec<[u8; 32]>);

impl Keys {
    /// No keys: everything is open.
    pub fn new(keys: &[Secret]) -> Self {
        Keys(keys.iter().map(|k| Sha256::digest(k.expose().as_bytes()).into()).collect())
    }

    /// Whether the request may pass.
    pub fn admits(&self, method: &Method, path: &str, headers: &HeaderMap) -> bool {
        if self.0.is_empty() || method == Method::OPTIONS || OPEN_PATHS.contains(&path) {
            return true;
        }
        let Some(key) = headers.get(header::AUTHORIZATION).and_then(|v| bearer(v.as_bytes())) else {
            return false;
        };
        let digest: [u8; 32] = Sha256::digest(key).into();
        self.0.iter().fold(false, |found, k| found | (*k == digest))
    }
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(key)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn keys_guard_all_but_the_open_paths() {
        let keys = Keys::new(&[Secret::new("one"), Secret::new("two")]);
        let with = |value: &str| HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
        let get = Method::GET;
        assert!(keys.admits(&get, "/health", &HeaderMap::new()));
        for path in ["/v1/completions", "/tokenize", "/v1/models", "/nowhere"] {
            assert!(!keys.admits(&get, path, &HeaderMap::new()), "{path}");
            for bad in ["Bearer three", "Bearer ", "Bearer", "two", "Basic two", "Bearer two "] {
                assert!(!keys.admits(&get, path, &with(bad)), "{path} {bad}");
            }
            assert!(keys.admits(&get, path, &with("Bearer one")));
            assert!(keys.admits(&get, path, &with("bearer two")));
        }
        assert!(Keys::default().admits(&get, "/v1/models", &HeaderMap::new()));
        assert!(keys.admits(&Method::OPTIONS, "/v1/models", &HeaderMap::new()));
    }
}
