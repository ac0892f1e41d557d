//! Model families: what each makes of its configuration. All arithmetic is in `layers/`.

pub mod llama;
pub mod mistral;
pub mod qwen2;
pub mod qwen3;
pub mod registry;

pub use registry::{Family, find};
