//! `--api-key`: a bearer key for every path that takes a prompt or names the model.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use axum::http::{HeaderMap, Method, header};
use sha2::{Digest, Sha256};

use crate::cli::Secret;

/// Paths that probes and scrapers reach without a key.
const OPEN_PATHS: [&str; 7] =
    ["/health", "/ready", "/ping", "/version", "/metrics", "/load", "/openapi.json"];

/// The keys. Without any, everything is open.
#[derive(Debug, Default)]
pub struct Keys(Vec<Key>);

#[derive(Debug)]
struct Key {
    /// Comparing digests takes the same time wherever two keys differ.
    digest: [u8; 32],
    /// Sequences of its requests that are in work.
    in_work: AtomicUsize,
}

/// Which of the keys a request bears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bearer(usize);

/// Whether a request may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// No key is needed.
    Open,
    Bearer(Bearer),
    Refused,
}

impl Keys {
    /// The keys of `--api-key`.
    pub fn new(keys: &[Secret]) -> Self {
        let digest = |key: &Secret| Sha256::digest(key.expose().as_bytes()).into();
        Keys(keys.iter().map(|key| Key { digest: digest(key), in_work: AtomicUsize::new(0) }).collect())
    }

    /// Whether the request may pass.
    pub fn admit(&self, method: &Method, path: &str, headers: &HeaderMap) -> Admission {
        if self.0.is_empty() || method == Method::OPTIONS || OPEN_PATHS.contains(&path) {
            return Admission::Open;
        }
        let Some(key) = headers.get(header::AUTHORIZATION).and_then(|v| bearer(v.as_bytes())) else {
            return Admission::Refused;
        };
        let digest: [u8; 32] = Sha256::digest(key).into();
        let found =
            self.0.iter().enumerate().fold(None, |found, (index, key)| {
                if key.digest == digest { Some(Bearer(index)) } else { found }
            });
        found.map_or(Admission::Refused, Admission::Bearer)
    }

    /// Counts sequences as in work on a key's account.
    ///
    /// # Errors
    /// The number in work, when these would make more than `limit`.
    pub fn hold(&self, key: Bearer, sequences: usize, limit: usize) -> Result<(), usize> {
        let add = |open: usize| Some(open + sequences).filter(|sum| *sum <= limit);
        self.0[key.0].in_work.fetch_update(Relaxed, Relaxed, add).map(|_| ())
    }

    /// Takes sequences that were held off a key's account.
    pub fn release(&self, key: Bearer, sequences: usize) {
        self.0[key.0].in_work.fetch_sub(sequences, Relaxed);
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
        let (one, two) = (Admission::Bearer(Bearer(0)), Admission::Bearer(Bearer(1)));
        assert_eq!(keys.admit(&get, "/health", &HeaderMap::new()), Admission::Open);
        for path in ["/v1/completions", "/tokenize", "/v1/models", "/nowhere"] {
            assert_eq!(keys.admit(&get, path, &HeaderMap::new()), Admission::Refused, "{path}");
            for bad in ["Bearer three", "Bearer ", "Bearer", "two", "Basic two", "Bearer two "] {
                assert_eq!(keys.admit(&get, path, &with(bad)), Admission::Refused, "{path} {bad}");
            }
            assert_eq!(keys.admit(&get, path, &with("Bearer one")), one);
            assert_eq!(keys.admit(&get, path, &with("bearer two")), two);
        }
        assert_eq!(Keys::default().admit(&get, "/v1/models", &HeaderMap::new()), Admission::Open);
        assert_eq!(keys.admit(&Method::OPTIONS, "/v1/models", &HeaderMap::new()), Admission::Open);
    }

    #[test]
    fn each_key_has_its_own_account() {
        let keys = Keys::new(&[Secret::new("one"), Secret::new("two")]);
        assert_eq!(keys.hold(Bearer(0), 3, 4), Ok(()));
        assert_eq!(keys.hold(Bearer(0), 2, 4), Err(3));
        assert_eq!(keys.hold(Bearer(1), 4, 4), Ok(()));
        keys.release(Bearer(0), 3);
        assert_eq!(keys.hold(Bearer(0), 4, 4), Ok(()));
    }
}
