//! Tiny random models of every family answer as Hugging Face transformers does (`fixtures/families.json`, made by
//! `fixtures/make_family_goldens.py`), alone, in batches, in chunks, with a warm prefix, after preemption, eager and
//! captured. Weights come from the counter-based generator that script and test share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use engine_core::DType;
use engine_core::config::ModelConfig;
use engine_core::loader::source::DummySource;
use tests::devices::{cpu, on_each_simd_path, reference};
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

fn for_each_family(check: impl Fn(&Golden<'_>)) {
    let fixture: Fixture = serde_json::from_str(include_str!("../fixtures/families.json")).unwrap();
    for f in &fixture.families {
        let config = ModelConfig::from_json(f.config.clone()).unwrap();
        let source = DummySource { seed: f.seed, std: config.initializer_range, dtype: DType::F32 };
        check(&Golden { name: &f.name, config: &config, source: &source, cases: &f.cases });
    }
}

#[test]
fn every_family_answers_as_transformers_does() {
    for_each_family(|golden| golden.check_every_way(&cpu));
}

#[test]
fn every_simd_path_of_this_host_answers_as_transformers_does() {
    on_each_simd_path(&|device| for_each_family(|golden| golden.check_alone(device)));
}

#[test]
fn the_scalar_reference_answers_as_transformers_does() {
    for_each_family(|golden| golden.check_alone(&reference));
}

#[test]
#[cfg(feature = "cuda")]
fn cuda_answers_as_transformers_does() {
    tests::devices::on_cuda(&|cuda| for_each_family(|golden| golden.check_every_way(cuda)));
}
