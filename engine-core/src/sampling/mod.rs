//! Sampling policy: what to do per row. The doing is `Op::Sample` on the device.

pub mod params;

pub use params::SamplingParams;
