//! Tiny checkpoints in every quantized format of the hub (`fixtures/quantized`, written by packers of their own in
//! `fixtures/make_quantized_goldens.py`): they unpack to the very bits that the script says, and answer as Hugging
//! Face transformers does on those numbers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use engine_core::config::ModelConfig;
use engine_core::loader::source::WeightSource;
use engine_core::loader::{Checkpoint, LoadFormat};
use engine_core::quant::at_load::{LoadQuantization, QuantizingSource};
use engine_core::quant::checkpoint::{Method, QuantizedCheckpoint};
use engine_core::quant::{self, RowCodes};
use tests::devices::{cpu, on_each_simd_path, reference};
use tests::golden::{Case, Golden};

#[derive(serde::Deserialize)]
struct Fixture {
    models: Vec<Model>,
}

#[derive(serde::Deserialize)]
struct Model {
    name: String,
    method: String,
    /// FNV-1a of the numbers of a matrix as float32.
    hashes: BTreeMap<String, String>,
    cases: Vec<Case>,
}

fn fixture() -> Fixture {
    serde_json::from_str(include_str!("../fixtures/quantized/goldens.json")).unwrap()
}

fn open(name: &str) -> (ModelConfig, QuantizedCheckpoint) {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/quantized").join(name);
    let config = ModelConfig::from_dir(&dir, None).unwrap();
    let method = Method::of(&config).unwrap().expect("a quantized configuration");
    (config, QuantizedCheckpoint::new(Checkpoint::open(&dir, LoadFormat::Auto).unwrap(), method))
}

fn for_each_model(check: impl Fn(&Golden<'_>)) {
    for m in &fixture().models {
        let (config, source) = open(&m.name);
        check(&Golden { name: &m.name, config: &config, source: &source, cases: &m.cases });
    }
}

#[test]
fn every_format_unpacks_to_the_scripts_bits() {
    for m in &fixture().models {
        let (config, source) = open(&m.name);
        assert!(Method::of(&config).unwrap().unwrap().is_named(&m.method), "{}", m.name);
        for (name, hash) in &m.hashes {
            let shape = if name.contains("q_proj") { [64, 64] } else { [64, 128] };
            let part = source.part(name, shape).unwrap();
            assert!(!part.format.is_dense(), "{}: {name} is plain", m.name);
            let values = quant::dequantize(&part).unwrap();
            let bytes = values.iter().flat_map(|x| x.to_le_bytes());
            let fnv = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3);
            let got = format!("{:016x}", bytes.fold(0xCBF2_9CE4_8422_2325, fnv));
            assert_eq!(&got, hash, "{}: {name} in {}", m.name, part.format);
            codes_agree(&m.name, &part, &values);
        }
    }
}

/// The codes that backends pack say the same numbers as the specification.
fn codes_agree(model: &str, part: &engine_core::backend::HostPart, values: &[f32]) {
    let Some(coded) = quant::coded(part).unwrap() else { return };
    let [n, k] = part.shape.map(|s| s as usize);
    let mut row = RowCodes::default();
    for r in 0..n {
        coded.row(r, &mut row);
        for (place, got) in row.values(&coded.scheme).into_iter().enumerate() {
            let column = coded.order.as_ref().map_or(place, |o| o[place] as usize);
            let want = values[r * k + column];
            assert!(got == want, "{model}: {} [{r}, {column}] is {got}, wanted {want}", part.name);
        }
    }
}

#[test]
fn every_format_answers_as_transformers_does() {
    for_each_model(|golden| golden.check_every_way(&cpu));
}

/// In bfloat16 rows may meet quantized weights as int8. The bound is for models as small as these (64 numbers a row, so
/// that one rounding weighs much): bfloat16 alone moves a log-probability by up to 0.09 here, int8 rows by up to
/// 0.21 (bnb-int8).
#[test]
fn rows_in_bytes_stay_near_transformers() {
    on_each_simd_path(&|device| for_each_model(|golden| golden.check_rounded(device, 0.25)));
}

#[test]
fn every_simd_path_of_this_host_answers_as_transformers_does() {
    on_each_simd_path(&|device| for_each_model(|golden| golden.check_alone(device)));
    for_each_model(|golden| golden.check_alone(&reference));
}

/// Quantizing at load takes the matrices of the layers, and leaves vectors and odd shapes alone.
#[test]
fn plain_weights_are_quantized_at_load() {
    let (_, fp8) = open("fp8-tensor");
    // Its embeddings are plain.
    let name = "model.embed_tokens.weight";
    let plain = fp8.part(name, [128, 64]).unwrap();
    for (label, to) in LoadQuantization::ALL {
        let source = QuantizingSource::new(Box::new(open("fp8-tensor").1), to);
        let part = source.part(name, [128, 64]).unwrap();
        assert_eq!(part.format.is_dense(), !label.starts_with('q'), "{label}");
        assert!(source.part("model.norm.weight", [1, 64]).unwrap().format.is_dense(), "{label}");
        let forced = quant::at_load::quantize(plain.clone(), to).unwrap();
        assert_eq!(quant::dequantize(&forced).unwrap().len(), 128 * 64, "{label}");
    }
}
