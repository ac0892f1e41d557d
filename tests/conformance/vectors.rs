//! The scalar reference against vectors of torch and Hugging Face transformers (`tests/fixtures/op_vectors.json`, made
//! by `make_op_vectors.py` beside it).
//!
//! torch sums in f32, the reference in f64 rounded once: 1e-5 of the larger of 1 and the value covers both. Functions
//! that only compare or mask must agree exactly.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;

use backend_cpu::reference::attention::{Attention, attend, merge_states};
use backend_cpu::reference::elementwise::elementwise;
use backend_cpu::reference::gemm::{After, gemm};
use backend_cpu::reference::rope::{HeadNorm, Rotation, rope};
use backend_cpu::reference::sample::{self, SlotState};
use backend_cpu::reference::{dtype, movement, norm, topk};
use engine_core::DType;
use engine_core::backend::{Activation, EwOp, Mask, RopeStyle, SampleRow, ScatterMode};
use engine_core::config::rope::{LongRope, Yarn};
use engine_core::config::{RopeConfig, RopeScaling};
use engine_core::layers::rope::rope_table;
use serde_json::Value;

/// One vector: its fields by name.
#[derive(serde::Deserialize)]
struct Vector {
    op: String,
    name: String,
    #[serde(flatten)]
    fields: BTreeMap<String, Value>,
}

const CLOSE: f64 = 1e-5;
const EXACT: f64 = 0.0;

#[test]
fn gemm_with_epilogues() {
    for v in vectors("Gemm", 14) {
        let (bias, add, residual) = (v.maybe("bias"), v.maybe("add"), v.maybe("residual"));
        let after = After {
            bias: bias.as_deref(),
            add: add.as_deref(),
            act: activation(v.text("act")),
            scale: v.number("scale"),
            residual: residual.as_deref(),
        };
        v.check("out", &gemm(&v.floats("x"), &v.floats("w"), v.size("k"), &after), CLOSE);
    }
}

#[test]
fn norms() {
    for v in vectors("Norm", 1) {
        v.check("out", &norm::rms_norm(&v.floats("x"), &v.floats("w"), v.number("eps").unwrap()), CLOSE);
    }
    for v in vectors("LayerNorm", 2) {
        let bias = v.maybe("bias");
        let eps = v.number("eps").unwrap();
        v.check("out", &norm::layer_norm(&v.floats("x"), &v.floats("w"), bias.as_deref(), eps), CLOSE);
    }
}

#[test]
fn elementwise_and_rounding() {
    for v in vectors("Elementwise", 6) {
        let (op, b) = match v.name.as_str() {
            "Add" => (EwOp::Add, Some(v.floats("b"))),
            "Mul" => (EwOp::Mul, Some(v.floats("b"))),
            "SiluMul" => (EwOp::SiluMul, Some(v.floats("b"))),
            "GeluTanhMul" => (EwOp::GeluTanhMul, Some(v.floats("b"))),
            "Scale" => (EwOp::Scale(-1.25), None),
            _ => (EwOp::SoftCap(2.5), None),
        };
        v.check("out", &elementwise(op, &v.floats("a"), b.as_deref()), CLOSE);
    }
    for v in vectors("Round", 2) {
        let to = if v.name == "float16" { DType::F16 } else { DType::Bf16 };
        let rounded: Vec<f32> = v.floats("x").iter().map(|x| dtype::round(to, *x)).collect();
        v.check("out", &rounded, EXACT);
        v.check("out", &dtype::decode(to, &dtype::encode(to, &v.floats("x"))), EXACT);
    }
}

#[test]
fn rows_moved_and_chosen() {
    for v in vectors("Embed", 1) {
        let mut out = vec![0.0; v.floats("out").len()];
        movement::gather_rows(&v.floats("table"), v.size("width"), &v.ints("ids"), &mut out);
        v.check("out", &out, EXACT);
    }
    for v in vectors("ScatterRows", 2) {
        let mode = if v.name == "Add" { ScatterMode::Add } else { ScatterMode::Set };
        let mut out = v.floats("before");
        movement::scatter_rows(&v.floats("x"), v.size("width"), &v.ints("rows"), mode, &mut out);
        v.check("out", &out, EXACT);
    }
    for v in vectors("TopK", 1) {
        let (ids, values) = topk::top_k(&v.floats("x"), v.size("width"), v.size("k"));
        assert_eq!(ids, v.ints("ids"));
        v.check("values", &values, EXACT);
    }
}

#[test]
fn rotations() {
    for v in vectors("Rope", 8) {
        let (table, positions, weight) = (v.floats("table"), v.ints("positions"), v.maybe("norm"));
        let style = if v.text("style") == "Half" { RopeStyle::Half } else { RopeStyle::Interleaved };
        let rotation = Rotation { positions: &positions, table: &table, rot: v.size("rot"), style };
        let head_norm = weight.as_deref().map(|w| HeadNorm { w, eps: v.number("eps").unwrap() });
        let mut x = v.floats("x");
        rope(&mut x, v.size("heads"), v.size("dim"), &rotation, head_norm.as_ref());
        v.check("out", &x, CLOSE);
    }
}

/// The tables that models are loaded with, by Hugging Face's names of the scaling types.
#[test]
fn rope_tables() {
    for v in vectors("RopeTable", 12) {
        let scaling = scaling(&v);
        let theta = v.fields["parameters"]["rope_theta"].as_f64().unwrap();
        let dim = v.size("dim");
        let config = RopeConfig { theta, rotary_dim: dim as u32, scaling };
        let table = rope_table(&config, v.size("positions") as u32);
        let picked: Vec<f32> =
            v.ints("picked").iter().flat_map(|p| table[*p as usize * dim..][..dim].to_vec()).collect();
        // The angle is a product of f32 numbers up to 255: one rounding of it is 1.5e-5.
        v.check("out", &picked, 4e-5);
    }
}

fn scaling(v: &Vector) -> RopeScaling {
    let p = &v.fields["parameters"];
    let number = |name: &str| p[name].as_f64().unwrap();
    let original =
        p["original_max_position_embeddings"].as_u64().unwrap_or(v.size("max_position") as u64) as u32;
    let factors = |name: &str| p[name].as_array().unwrap().iter().map(|f| f.as_f64().unwrap()).collect();
    match v.text("kind") {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: number("factor") },
        "dynamic" => RopeScaling::Dynamic { factor: number("factor"), original_max_position: original },
        "llama3" => RopeScaling::Llama3 {
            factor: number("factor"),
            low_freq_factor: number("low_freq_factor"),
            high_freq_factor: number("high_freq_factor"),
            original_max_position: original,
        },
        "yarn" => RopeScaling::Yarn(Yarn {
            factor: number("factor"),
            original_max_position: original,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: None,
            mscale: None,
            mscale_all_dim: None,
            truncate: true,
        }),
        "longrope" => RopeScaling::LongRope(LongRope {
            short_factor: factors("short_factor"),
            long_factor: factors("long_factor"),
            original_max_position: original,
            factor: number("factor"),
            attention_factor: None,
        }),
        other => panic!("unknown scaling {other}"),
    }
}

#[test]
fn attention() {
    for v in vectors("PagedAttention", 36) {
        let (sinks, slopes) = (v.maybe("sinks"), v.maybe("slopes"));
        let a = Attention {
            q_heads: v.size("heads"),
            kv_heads: v.size("kv_heads"),
            k_dim: v.size("dim"),
            v_dim: v.size("dim"),
            mask: match v.text("mask") {
                "Causal" => Mask::Causal,
                "Window" => Mask::Window { tokens: v.size("window") as u32 },
                _ => Mask::Full,
            },
            scale: v.number("scale").unwrap(),
            soft_cap: v.number("soft_cap"),
            sinks: sinks.as_deref(),
            slopes: slopes.as_deref(),
        };
        let (out, lse) = attend(&a, &v.floats("q"), &v.floats("k"), &v.floats("v"));
        v.check("out", &out, CLOSE);
        if v.fields.contains_key("lse") {
            v.check("lse", &lse, CLOSE);
        }
    }
    for v in vectors("MergeStates", 3) {
        v.check(
            "out",
            &merge_states(&v.floats("parts"), &v.floats("lse"), v.size("n"), v.size("v_dim")),
            CLOSE,
        );
    }
}

#[test]
fn log_probabilities() {
    for v in vectors("LogProbs", 3) {
        let (logits, expected) = (v.floats("logits"), v.floats("out"));
        for id in 0..logits.len() as u32 {
            let got = sample::logprobs(&logits, id, 4);
            let better = expected.iter().filter(|l| **l > expected[id as usize]).count();
            assert_eq!(got.rank as usize, better + 1);
            for (id, value) in got.ids.iter().zip(&got.values) {
                assert!((value - expected[*id as usize]).abs() < 1e-5, "{}: {id}", v.name);
            }
        }
    }
}

/// Hugging Face's logits processors one by one, and vLLM's penalties by their formula.
#[test]
fn sampling_rules() {
    for v in vectors("Penalties", 9) {
        let mut logits = v.floats("logits");
        sample::apply_penalties(&row(&v), &state(&v), &mut logits);
        v.check("out", &logits, CLOSE);
    }
    for v in vectors("Rules", 12) {
        let mut logits = v.floats("logits");
        sample::apply_rules(&row(&v), &state(&v), None, &mut logits);
        v.check("out", &logits, CLOSE);
    }
    for v in vectors("Temperature", 6) {
        let got: Vec<f32> = v.floats("logits").iter().map(|l| l / v.number("temperature").unwrap()).collect();
        v.check("out", &got, CLOSE);
    }
    for v in vectors("MinP", 6) {
        let mut logits = v.floats("logits");
        sample::apply_min_p(v.number("min_p").unwrap(), &mut logits);
        v.check("out", &logits, EXACT);
    }
    for v in vectors("TopK-TopP", 33) {
        let mut logits = v.floats("logits");
        sample::apply_top_k_top_p(v.size("top_k") as u32, v.number("top_p").unwrap(), &mut logits);
        v.check("out", &logits, EXACT);
    }
}

/// All rules in one call against the chain of processors: the draw must come from what the chain leaves, as often as
/// its softmax says.
#[test]
fn draws_follow_the_whole_chain() {
    for v in vectors("Chain", 3) {
        let expected = v.floats("out");
        let highest = expected.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f64> = expected.iter().map(|l| f64::from(l - highest).exp()).collect();
        let total: f64 = weights.iter().sum();
        let draws = 20_000u32;
        let mut counts = vec![0u32; expected.len()];
        for position in 0..draws {
            let row = SampleRow { position, seed: 99, ..row(&v) };
            let id = sample::sample(&row, &state(&v), None, &mut v.floats("logits"));
            counts[id as usize] += 1;
        }
        let mut chi_square = 0.0;
        for (count, weight) in counts.iter().zip(&weights) {
            let wanted = f64::from(draws) * weight / total;
            if wanted == 0.0 {
                assert_eq!(*count, 0, "{}: a masked id was drawn", v.name);
            } else {
                chi_square += (f64::from(*count) - wanted).powi(2) / wanted.max(1.0);
            }
        }
        // At most 14 degrees of freedom: 42 is passed by chance once in ten thousand seeds, and the seed is fixed.
        assert!(chi_square < 42.0, "{}: chi-square {chi_square}", v.name);
    }
}

fn row(v: &Vector) -> SampleRow {
    SampleRow {
        slot: 0,
        flags: SampleRow::PENALTIES | SampleRow::RULES | SampleRow::MASK_STOPS,
        temperature: v.number("temperature").unwrap_or(1.0),
        top_k: v.fields.get("top_k").map_or(0, |k| k.as_u64().unwrap() as u32),
        top_p: v.number("top_p").unwrap_or(1.0),
        min_p: v.number("min_p").unwrap_or(0.0),
        presence: v.number("presence").unwrap_or(0.0),
        frequency: v.number("frequency").unwrap_or(0.0),
        repetition: v.number("repetition").unwrap_or(1.0),
        seed: 0,
        position: 0,
    }
}

fn state(v: &Vector) -> SlotState {
    let ids = |value: &Value| {
        value.as_array().unwrap().iter().map(|i| i.as_u64().unwrap() as u32).collect::<Vec<_>>()
    };
    let list = |name: &str| v.fields.get(name).map(ids);
    let pairs = v.fields.get("bias").map_or(Vec::new(), |b| b.as_array().unwrap().clone());
    let words = v.fields.get("bad_words").map_or(Vec::new(), |w| w.as_array().unwrap().clone());
    SlotState {
        prompt: list("prompt").unwrap_or_default(),
        output: list("output").unwrap_or_default(),
        bias: pairs.iter().map(|p| (p[0].as_u64().unwrap() as u32, p[1].as_f64().unwrap() as f32)).collect(),
        allowed: list("allowed"),
        stops: list("stops").unwrap_or_default(),
        bad_words: words.iter().map(ids).collect(),
    }
}

fn activation(name: &str) -> Activation {
    match name {
        "Identity" => Activation::Identity,
        "Silu" => Activation::Silu,
        "Gelu" => Activation::Gelu,
        "GeluTanh" => Activation::GeluTanh,
        "Relu" => Activation::Relu,
        "SiluMul" => Activation::SiluMul,
        "GeluTanhMul" => Activation::GeluTanhMul,
        other => panic!("unknown activation {other}"),
    }
}

/// All vectors of an op, as many as there should be.
fn vectors(op: &str, count: usize) -> Vec<Vector> {
    let text = include_str!("../fixtures/op_vectors.json");
    let all: Vec<Vector> = serde_json::from_str(text).unwrap();
    let of_op: Vec<Vector> = all.into_iter().filter(|v| v.op == op).collect();
    assert_eq!(of_op.len(), count, "vectors of {op}");
    of_op
}

impl Vector {
    fn floats(&self, field: &str) -> Vec<f32> {
        self.maybe(field).unwrap_or_else(|| panic!("{} {} has no {field}", self.op, self.name))
    }

    fn maybe(&self, field: &str) -> Option<Vec<f32>> {
        let number = |value: &Value| match value {
            Value::String(text) => text.parse().unwrap(),
            value => value.as_f64().unwrap() as f32,
        };
        self.fields.get(field).map(|v| v.as_array().unwrap().iter().map(number).collect())
    }

    fn ints(&self, field: &str) -> Vec<i32> {
        self.fields[field].as_array().unwrap().iter().map(|v| v.as_i64().unwrap() as i32).collect()
    }

    fn size(&self, field: &str) -> usize {
        self.fields[field].as_u64().unwrap() as usize
    }

    fn number(&self, field: &str) -> Option<f32> {
        self.fields.get(field).map(|v| v.as_f64().unwrap() as f32)
    }

    fn text(&self, field: &str) -> &str {
        self.fields[field].as_str().unwrap()
    }

    fn check(&self, field: &str, got: &[f32], tolerance: f64) {
        let want = self.floats(field);
        assert_eq!(got.len(), want.len(), "{} {}: {field}", self.op, self.name);
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            let close =
                g == w || (f64::from(*g) - f64::from(*w)).abs() <= tolerance * f64::from(w.abs()).max(1.0);
            assert!(close, "{} {}: {field}[{i}] is {g}, torch has {w}", self.op, self.name);
        }
    }
}
