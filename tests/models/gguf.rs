//! Tiny GGUF files in every weight format answer as Hugging Face transformers does on the numbers that the `gguf`
//! package says they hold (`fixtures/gguf`, made by `fixtures/make_gguf_goldens.py`): alone, in batches, in chunks,
//! with a warm prefix, after preemption, eager and captured.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::PathBuf;

use engine_core::config::ModelConfig;
use engine_core::loader::gguf_model::GgufModel;
use engine_core::quant::{GgmlType, WeightFormat};
use tests::devices::{cpu, on_each_simd_path, reference};
use tests::golden::{Case, Golden};

#[derive(serde::Deserialize)]
struct Fixture {
    models: Vec<Model>,
}

#[derive(serde::Deserialize)]
struct Model {
    name: String,
    cases: Vec<Case>,
}

fn open(name: &str) -> GgufModel {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/gguf/{name}.gguf"));
    GgufModel::open(&path).unwrap()
}

fn for_each_model(check: impl Fn(&Golden<'_>)) {
    let fixture: Fixture = serde_json::from_str(include_str!("../fixtures/gguf/models.json")).unwrap();
    for m in &fixture.models {
        let source = open(&m.name);
        let config = ModelConfig::from_json(source.config().unwrap()).unwrap();
        check(&Golden { name: &m.name, config: &config, source: &source, cases: &m.cases });
    }
}

#[test]
fn every_file_answers_as_transformers_does() {
    for_each_model(|golden| golden.check_every_way(&cpu));
}

/// In bfloat16 rows may meet quantized weights as int8. The bound is for models as small as these (64 numbers a row, so
/// that one rounding weighs much): bfloat16 alone moves a log-probability by up to 0.09 here, int8 rows by up to
/// 0.15 (wide).
#[test]
fn rows_in_bytes_stay_near_transformers() {
    on_each_simd_path(&|device| for_each_model(|golden| golden.check_rounded(device, 0.25)));
}

#[test]
fn every_simd_path_of_this_host_answers_as_transformers_does() {
    on_each_simd_path(&|device| for_each_model(|golden| golden.check_alone(device)));
}

#[test]
fn the_scalar_reference_answers_as_transformers_does() {
    for_each_model(|golden| golden.check_alone(&reference));
}

/// The two files hold every format that is read, so that none goes untested.
#[test]
fn the_files_hold_every_format() {
    let files = ["small", "wide"].map(open);
    for t in GgmlType::ALL {
        let found = files.iter().flat_map(|f| f.metadata().tensors().values());
        assert!(found.map(|t| t.format).any(|f| f == WeightFormat::Ggml(t)), "no tensor of {t}");
    }
}
