//! The program itself: what it says and how it ends when its input is wrong, when it is told to stop, and when it has
//! nothing to do. A test of the `server` package, whose binary it runs.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![cfg(unix)]

#[path = "program/bad_input.rs"]
mod bad_input;
#[path = "program/process.rs"]
mod process;
#[path = "program/signals.rs"]
mod signals;
