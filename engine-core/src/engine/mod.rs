//! The engine loop and its public face: [`EngineHandle`] in, [`types::StepOutputs`] out.

pub mod build;
mod build_draft;
pub mod core;
pub mod handle;
pub mod metrics;
pub mod types;

pub use build::{EngineOptions, StartupReport, start};
pub use handle::{EngineHandle, EngineState, QueueLimits};
pub use metrics::EngineFigures;
