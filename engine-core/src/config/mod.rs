//! What a model directory's JSON files say, typed and checked: `config.json` and `generation_config.json`.
//!
//! Values are checked once, here; the rest of the engine relies on them. A message names the file, the key, the
//! value it has, and what would be right.

mod fields;
pub mod generation;
pub mod model;
pub mod rope;

pub use fields::{Fields, read_json};
pub use generation::GenerationConfig;
pub use model::{HiddenAct, ModelConfig, apply_overrides};
pub use rope::{RopeConfig, RopeScaling};
