//! The real trained model in `../shared/models/stories260k` answers as its golden file says, in every way.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use engine_core::config::ModelConfig;
use engine_core::loader::{Checkpoint, LoadFormat};
use tests::devices::cpu;
use tests::golden::{Case, Golden};

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

impl From<StoryCase> for Case {
    fn from(c: StoryCase) -> Self {
        let StoryCase { prompt_ids: prompt, greedy_ids: greedy, greedy_logprobs: logprobs, prompt_logprobs } =
            c;
        Case { prompt, greedy, logprobs, prompt_logprobs }
    }
}

fn with_stories(check: impl Fn(&Golden<'_>)) {
    let Some(shared) = tests::shared_dir() else {
        println!("left out: ../shared/models/stories260k is not here");
        return;
    };
    let dir = shared.join("models/stories260k");
    let config = ModelConfig::from_dir(&dir, None).unwrap();
    let checkpoint = Checkpoint::open(&dir, LoadFormat::Auto).unwrap();
    let text = std::fs::read_to_string(dir.join("golden.json")).unwrap();
    let file: File = serde_json::from_str(&text).unwrap();
    let cases: Vec<Case> = file.cases.into_iter().map(Case::from).collect();
    let golden = Golden { name: "stories260k", config: &config, source: &checkpoint, cases: &cases };
    check(&golden);
}

#[test]
fn stories260k_reproduces_its_goldens() {
    with_stories(|golden| golden.check_every_way(&cpu));
}

#[test]
#[cfg(feature = "cuda")]
fn cuda_reproduces_its_goldens() {
    tests::devices::on_cuda(&|cuda| with_stories(|golden| golden.check_every_way(cuda)));
}
