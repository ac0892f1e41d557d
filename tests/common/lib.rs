//! What the tests share: cases, tolerances, fixtures.
#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod allocator;
#[cfg(feature = "cpu")]
#[path = "../conformance/mod.rs"]
pub mod conformance;
#[cfg(feature = "cpu")]
pub mod devices;
pub mod engine;
pub mod golden;
pub mod http;
pub mod load;
pub mod models;
pub mod null;
pub mod rigged;
pub mod rng;
pub mod server;

use std::path::PathBuf;

/// The folder `shared` beside the checkout (or beside the folder of worktrees), which holds real models and
/// templates; `None` in a bare clone. A test that goes without it prints one line naming what it left out.
pub fn shared_dir() -> Option<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    ["../shared", "../../shared"]
        .iter()
        .map(|path| root.join(path))
        .find(|path| path.join("DESIGN.md").is_file())
}
