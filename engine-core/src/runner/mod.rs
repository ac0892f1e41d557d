//! Turns a step plan into device work: pack one host buffer, one upload, one replay (or eager ops), one download.

pub mod forward;
pub mod graphs;
pub mod inputs;
pub mod outputs;
pub mod slots;

pub use forward::{InFlight, Runner, RunnerConfig};
pub use outputs::{RowSample, StepResults};
pub use slots::RequestView;
