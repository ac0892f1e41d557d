//! The targets, and the server in process that two of them ask.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../http/harness.rs"]
pub mod harness;
pub mod targets;
