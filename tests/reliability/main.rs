//! The reliability contract: docs/reliability.md names the test of each line.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod engine;
mod http;
mod lost;
mod storm;
