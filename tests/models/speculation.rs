//! Answers with drafts are answers without: goldens in every way, and sampled tokens with every rule.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;

use backend_cpu::{CpuBackend, CpuConfig};
use engine_core::DType;
use engine_core::backend::Backend;
use engine_core::config::ModelConfig;
use engine_core::engine::EngineOptions;
use engine_core::engine::types::DraftCounts;
use engine_core::loader::source::{DummySource, WeightSource};
use engine_core::loader::{Checkpoint, LoadFormat};
use engine_core::sampling::SamplingParams;
use engine_core::speculate::{DraftModel, Method, Speculation};
use tests::engine::{Collected, TestEngine};
use tests::golden::{Case, Golden};

#[derive(serde::Deserialize)]
struct Fixture {
    families: Vec<Family>,
}

#[derive(serde::Deserialize)]
struct Family {
    name: String,
    seed: u64,
    config: serde_json::Map<String, serde_json::Value>,
    cases: Vec<Case>,
}

impl Family {
    fn config(&self) -> ModelConfig {
        ModelConfig::from_json(self.config.clone()).unwrap()
    }

    /// Random weights of the family's shape.
    fn weights(&self, seed: u64) -> DummySource {
        DummySource { seed, std: self.config().initializer_range, dtype: DType::F32 }
    }
}

fn families() -> Vec<Family> {
    let fixture: Fixture = serde_json::from_str(include_str!("../fixtures/families.json")).unwrap();
    fixture.families
}

fn cpu() -> Arc<dyn Backend> {
    Arc::new(CpuBackend::new(CpuConfig { threads: Some(2), ..CpuConfig::default() }).unwrap())
}

fn lookup(tokens: u32, min: u32, max: u32) -> Speculation {
    Speculation { tokens, most_rows: None, method: Method::Ngram { min, max } }
}

fn drafted_by(config: &ModelConfig, source: impl WeightSource + 'static, tokens: u32) -> Speculation {
    let source = Arc::new(source);
    let model = DraftModel { name: "draft".to_owned(), config: config.clone(), source, max_len: None };
    Speculation { tokens, most_rows: None, method: Method::Model(Box::new(model)) }
}

fn all_right(what: &str, d: &DraftCounts) {
    assert!(d.tokens > 0 && d.accepted == d.tokens, "{what}: a model agrees with itself: {d:?}");
}

fn some_wrong(what: &str, d: &DraftCounts) {
    assert!(d.tokens > 0 && d.accepted < d.tokens, "{what}: another model is not always right: {d:?}");
}

#[test]
fn every_family_answers_the_same_with_drafts() {
    for f in families() {
        let (config, source) = (f.config(), f.weights(f.seed));
        let golden = Golden { name: &f.name, config: &config, source: &source, cases: &f.cases };
        let check = |s: &Speculation| golden.check_every_way_with(&cpu, Some(s));
        assert!(check(&lookup(3, 1, 3)).tokens > 0, "{}: nothing was looked up", f.name);
        let itself = check(&drafted_by(&config, f.weights(f.seed), 4));
        match config.layer_windows.iter().any(Option::is_some) {
            false => all_right(&f.name, &itself),
            // Where a window's page has just been given back, the first of two positions misses its oldest key.
            true => assert!(itself.accepted * 2 > itself.tokens, "{}: {itself:?}", f.name),
        }
        some_wrong(&f.name, &check(&drafted_by(&config, f.weights(f.seed + 7), 2)));
    }
}

/// The trained model: prompt lookup is right now and then, and it drafts for itself.
#[test]
fn stories260k_answers_the_same_with_drafts() {
    let Some(shared) = tests::shared_dir() else {
        println!("left out: ../shared/models/stories260k is not here");
        return;
    };
    let dir = shared.join("models/stories260k");
    let config = ModelConfig::from_dir(&dir, None).unwrap();
    let open = || Checkpoint::open(&dir, LoadFormat::Auto).unwrap();
    let text = std::fs::read_to_string(dir.join("golden.json")).unwrap();
    let file: serde_json::Value = serde_json::from_str(&text).unwrap();
    let case = |c: &serde_json::Value| {
        let list = |key: &str| c[key].clone();
        let case = serde_json::json!({"prompt": list("prompt_ids"), "greedy": list("greedy_ids"),
            "logprobs": list("greedy_logprobs"), "prompt_logprobs": list("prompt_logprobs")});
        serde_json::from_value::<Case>(case).unwrap()
    };
    let cases: Vec<Case> = file["cases"].as_array().unwrap().iter().map(case).collect();
    let source = open();
    let golden = Golden { name: "stories260k", config: &config, source: &source, cases: &cases };
    let found = golden.check_every_way_with(&cpu, Some(&lookup(4, 1, 4)));
    assert!(found.accepted > 0, "{found:?}");
    all_right("stories260k", &golden.check_every_way_with(&cpu, Some(&drafted_by(&config, open(), 8))));
    let other = DummySource { seed: 3, std: 0.02, dtype: DType::F32 };
    some_wrong("stories260k", &golden.check_every_way_with(&cpu, Some(&drafted_by(&config, other, 1))));
}

/// Rules that look at the tokens before, or at how many there are, and requests that end among drafts.
fn rules(vocab: u32) -> Vec<SamplingParams> {
    let base = || SamplingParams { max_tokens: 40, temperature: 0.4, ..SamplingParams::default() };
    let half = || (0..vocab / 2).collect::<Vec<u32>>();
    vec![
        SamplingParams { temperature: 0.0, ..base() },
        base(),
        SamplingParams { temperature: 1.0, top_k: 12, top_p: 0.9, min_p: 0.02, ..base() },
        SamplingParams { repetition_penalty: 1.3, presence_penalty: 0.5, frequency_penalty: 0.4, ..base() },
        SamplingParams { temperature: 0.0, frequency_penalty: 0.3, ..base() },
        SamplingParams {
            bad_words: (0..vocab - 1).step_by(3).map(|i| vec![i, i + 1]).chain([vec![5]]).collect(),
            ..base()
        },
        SamplingParams { allowed_token_ids: Some(half()), logit_bias: vec![(3, 2.0), (9, -1.0)], ..base() },
        SamplingParams { eos_token_ids: half().split_off(20), min_tokens: 9, ..base() },
        SamplingParams { stop_token_ids: half(), min_tokens: 3, ..base() },
        SamplingParams { eos_token_ids: half(), ignore_eos: true, max_tokens: 17, ..base() },
        SamplingParams { max_tokens: 2, ..base() },
        SamplingParams { logprobs: Some(3), ..base() },
    ]
}

fn run_rules(f: &Family, options: &EngineOptions) -> (Vec<Collected>, DraftCounts) {
    let (config, source) = (f.config(), f.weights(f.seed));
    let e = TestEngine::start(cpu(), &config, &source, options);
    let loops: Vec<u32> = (0..48).map(|i| [3, 9, 4, 9, 3, 5][i % 6]).collect();
    let mut ids = Vec::new();
    for (i, params) in rules(config.vocab_size).into_iter().enumerate() {
        // Several answers to one prompt differ by their seeds.
        for seed in 0..3 {
            let prompt = &loops[..7 + 3 * i];
            ids.push(e.submit(prompt, SamplingParams { seed: 100 * i as u64 + seed, ..params.clone() }));
        }
    }
    (e.wait(&ids), e.stats().drafts)
}

#[test]
fn every_rule_gives_the_same_tokens_with_drafts() {
    for f in families().iter().filter(|f| ["llama", "qwen2-mixed-window"].contains(&f.name.as_str())) {
        for steps_in_flight in [1, 2] {
            let plain =
                EngineOptions { dtype: Some(DType::F32), steps_in_flight, ..EngineOptions::default() };
            let (want, none) = run_rules(f, &plain);
            assert_eq!(none, DraftCounts::default());
            let itself = drafted_by(&f.config(), f.weights(f.seed), 4);
            let other = drafted_by(&f.config(), f.weights(f.seed + 1), 3);
            for (how, speculation) in
                [("lookup", lookup(4, 1, 4)), ("its own draft", itself), ("a bad draft", other)]
            {
                let options = EngineOptions { speculation: Some(speculation), ..plain.clone() };
                let (got, drafts) = run_rules(f, &options);
                assert!(drafts.accepted > 0 && drafts.accepted < drafts.tokens, "{how}: {drafts:?}");
                for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                    let at = format!("{} with {how}, request {i}, {steps_in_flight} in flight", f.name);
                    assert_eq!((&g.tokens, g.finish, g.ends), (&w.tokens, w.finish, 1), "{at}");
                    assert_eq!(g.logprobs, w.logprobs, "{at}");
                }
            }
        }
    }
}
