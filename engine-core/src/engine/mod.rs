//! The engine loop and its public face: [`handle::EngineHandle`] in, [`types::StepOutputs`] out.

pub mod types;
