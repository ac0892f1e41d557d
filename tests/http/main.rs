//! The wire: what clients see, over an engine whose every answer is known.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod chat;
mod completions;
mod errors;
mod graphs;
mod harness;
mod lifecycle;
mod metrics;
mod parameters;
mod surface;
