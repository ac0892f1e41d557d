//! `pallium bench`.

pub mod checkpoint;
pub mod cost;
mod drive;
pub mod latency;
mod limits;
mod prompts;
pub mod serve;
pub mod startup;
mod statistics;
pub mod throughput;

use std::path::Path;

use serde_json::Value;

use crate::model::StartError;

/// Writes a bench's figures to the file of `--output-json`, if there is one.
fn save(path: Option<&Path>, figures: &Value) -> Result<(), StartError> {
    let Some(path) = path else { return Ok(()) };
    let text = format!("{figures:#}\n");
    std::fs::write(path, text).map_err(|e| StartError::new(format!("--output-json {}: {e}", path.display())))
}
