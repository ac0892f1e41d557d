//! Models whose answers an independent implementation has given.

use engine_core::DType;
use engine_core::config::ModelConfig;
use engine_core::loader::source::DummySource;
use engine_core::loader::{Checkpoint, LoadFormat};

use crate::golden::{Case, Golden};

/// A tiny random model of one family, of `fixtures/families.json`. Weights come from the counter-based generator that
/// script and test share.
#[derive(serde::Deserialize)]
pub struct Family {
    pub name: String,
    pub seed: u64,
    pub config: serde_json::Map<String, serde_json::Value>,
    pub cases: Vec<Case>,
}

impl Family {
    /// Its configuration, read.
    pub fn config(&self) -> ModelConfig {
        ModelConfig::from_json(self.config.clone()).unwrap()
    }

    /// Random weights of its shape; the cases are of those with `self.seed`.
    pub fn weights(&self, seed: u64) -> DummySource {
        DummySource { seed, std: self.config().initializer_range, dtype: DType::F32 }
    }
}

/// Every family.
pub fn families() -> Vec<Family> {
    #[derive(serde::Deserialize)]
    struct Fixture {
        families: Vec<Family>,
    }
    let fixture: Fixture = serde_json::from_str(include_str!("../fixtures/families.json")).unwrap();
    fixture.families
}

/// The real trained model in `../shared/models/stories260k`.
pub struct Stories {
    pub config: ModelConfig,
    pub checkpoint: Checkpoint,
    pub cases: Vec<Case>,
}

impl Stories {
    /// Opens it; says that it was left out where it is not.
    pub fn open() -> Option<Stories> {
        #[derive(serde::Deserialize)]
        struct File {
            cases: Vec<StoryCase>,
        }
        #[derive(serde::Deserialize)]
        struct StoryCase {
            prompt_ids: Vec<u32>,
            greedy_ids: Vec<u32>,
            greedy_logprobs: Vec<f32>,
            prompt_logprobs: Vec<Option<f32>>,
        }
        let Some(shared) = crate::shared_dir() else {
            println!("left out: ../shared/models/stories260k is not here");
            return None;
        };
        let dir = shared.join("models/stories260k");
        let text = std::fs::read_to_string(dir.join("golden.json")).unwrap();
        let file: File = serde_json::from_str(&text).unwrap();
        let case = |c: StoryCase| Case {
            prompt: c.prompt_ids,
            greedy: c.greedy_ids,
            logprobs: c.greedy_logprobs,
            prompt_logprobs: c.prompt_logprobs,
        };
        Some(Stories {
            config: ModelConfig::from_dir(&dir, None).unwrap(),
            checkpoint: Checkpoint::open(&dir, LoadFormat::Auto).unwrap(),
            cases: file.cases.into_iter().map(case).collect(),
        })
    }

    /// Its goldens.
    pub fn golden(&self) -> Golden<'_> {
        Golden { name: "stories260k", config: &self.config, source: &self.checkpoint, cases: &self.cases }
    }
}
