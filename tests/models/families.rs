//! Tiny random models of every family answer as Hugging Face transformers does (`fixtures/families.json`, made by
//! `fixtures/make_family_goldens.py`), alone, in batches, in chunks, with a warm prefix, after preemption, eager and
//! captured. Weights come from the counter-based generator that script and test share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use tests::devices::{cpu, on_each_simd_path, reference};
use tests::golden::Golden;
use tests::models::families;

fn for_each_family(check: impl Fn(&Golden<'_>)) {
    for f in families() {
        let (config, source) = (f.config(), f.weights(f.seed));
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
