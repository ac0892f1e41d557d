//! What each flag of `pallium serve` does, seen from outside the program. Every flag that the table marks as working
//! stands in one of these files, or in [`ELSEWHERE`] with the test that shows it.
//!
//! A test of the `server` package, whose binary it runs.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![cfg(unix)]

use std::collections::BTreeSet;

use server::cli::flag::Status;
use server::cli::flags::{ENGINE, SERVER};

mod chat;
mod engine;
mod harness;
mod http;
mod hub;
mod log;
mod model;
#[path = "../../reliability/program/process.rs"]
mod process;

/// Flags whose effect needs more than the program and the bundled model.
const ELSEWHERE: [(&str, &str); 8] = [
    ("shutdown-timeout", "tests/reliability/program/signals.rs"),
    ("enforce-eager", "tests/http/graphs.rs counts captures"),
    ("optimization-level", "tests/http/graphs.rs"),
    ("compilation-config", "tests/http/graphs.rs"),
    ("cudagraph-capture-sizes", "tests/http/graphs.rs"),
    ("max-cudagraph-capture-size", "tests/http/graphs.rs"),
    ("async-scheduling", "tests/http/graphs.rs counts steps in flight"),
    ("batch-invariant", "the CPU is always so (tests/models); a GPU's own tests"),
];

/// Defines the tests of one file, each under the flag it is about.
macro_rules! effects {
    ($($flag:literal fn $test:ident() $body:block)*) => {
        /// Flags that are shown here.
        pub const FLAGS: &[&str] = &[$($flag),*];
        $(#[test] fn $test() $body)*
    };
}
pub(crate) use effects;

#[test]
fn every_working_flag_is_shown() {
    let groups = ENGINE.iter().chain(SERVER).flat_map(|group| group.flags);
    let working: BTreeSet<&str> =
        groups.filter(|flag| matches!(flag.status, Status::Active)).map(|flag| flag.name).collect();
    let files = [chat::FLAGS, engine::FLAGS, http::FLAGS, hub::FLAGS, log::FLAGS, model::FLAGS].concat();
    let shown: BTreeSet<&str> = files.into_iter().chain(ELSEWHERE.map(|(flag, _)| flag)).collect();
    let none: Vec<_> = working.difference(&shown).collect();
    assert!(none.is_empty(), "no test shows what these do: {none:?}");
    let gone: Vec<_> = shown.difference(&working).collect();
    assert!(gone.is_empty(), "the table has no such working flags: {gone:?}");
}
