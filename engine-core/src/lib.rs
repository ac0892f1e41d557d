//! Pallium's engine: everything that is true on every device.
//!
//! `backend` is the seam to devices, `loader` and `quant` read checkpoints, `layers` and `models` describe
//! networks against the seam, `kv` and `scheduler` decide who runs with which pages, `runner` turns a step plan
//! into device work, `sampling` says how a row is sampled, `speculate` drafts tokens, `engine` is the loop that owns all
//! of it.
//! This crate knows no HTTP, no JSON bodies and no user text.

#![deny(unsafe_code)]

pub mod backend;
pub mod config;
pub mod engine;
pub mod error;
pub mod kv;
pub mod layers;
pub mod limits;
pub mod loader;
pub mod models;
pub mod quant;
pub mod runner;
pub mod sampling;
pub mod scheduler;
pub mod speculate;
pub mod tensor;

pub use error::{Error, Result};
pub use tensor::{DType, Tensor};
