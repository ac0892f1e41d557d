//! The scalar reference against torch itself, on fresh random inputs: the live form of `tests/conformance/vectors.rs`.
//!
//! ```text
//! pip install torch==2.13.0
//! export LIBTORCH_USE_PYTORCH=1 LD_LIBRARY_PATH=<site-packages>/torch/lib
//! cargo test --manifest-path tests/live-torch/Cargo.toml --features tch
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used)]

use backend_cpu::reference::attention::{Attention, attend};
use backend_cpu::reference::dtype;
use backend_cpu::reference::gemm::{After, gemm};
use backend_cpu::reference::norm::{layer_norm, rms_norm};
use backend_cpu::reference::sample::logprobs;
use backend_cpu::reference::topk::top_k;
use engine_core::DType;
use engine_core::backend::{Activation, Mask};
use engine_core::loader::fill::Fill;
use tch::{Kind, Tensor};

/// `count` values of about normal distribution, mean 0.
fn normal(name: &str, count: usize, std: f32) -> Vec<f32> {
    let fill = Fill::new(1, name, 0.0, std);
    (0..count as u64).map(|i| fill.value(i)).collect()
}

/// Sizes of trial `i`, 1 to `most` each.
fn sizes<const N: usize>(trial: usize, most: [usize; N]) -> [usize; N] {
    let random = normal(&format!("sizes{trial}"), N, 1.0);
    std::array::from_fn(|i| 1 + (random[i].to_bits().wrapping_mul(0x9E37_79B1) >> 8) as usize % most[i])
}

fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values).reshape(shape.iter().map(|d| *d as i64).collect::<Vec<_>>())
}

fn close(what: &str, got: &[f32], want: &Tensor) {
    let want = Vec::<f32>::try_from(want.to_kind(Kind::Float).contiguous().flatten(0, -1)).unwrap();
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(&want).enumerate() {
        assert!(g == w || (g - w).abs() <= 2e-5 * w.abs().max(1.0), "{what}[{i}] is {g}, torch has {w}");
    }
}

#[test]
fn products() {
    type Act = fn(&Tensor) -> Tensor;
    let acts: [(Activation, Act); 5] = [
        (Activation::Identity, Tensor::shallow_clone),
        (Activation::Silu, Tensor::silu),
        (Activation::Gelu, |y| y.gelu("none")),
        (Activation::GeluTanh, |y| y.gelu("tanh")),
        (Activation::Relu, Tensor::relu),
    ];
    for trial in 0..20 {
        let [t, n, k] = sizes(trial, [20, 70, 300]);
        let x = normal(&format!("x{trial}"), t * k, 1.0);
        let w = normal(&format!("w{trial}"), n * k, 1.0 / (k as f32).sqrt());
        let bias = normal(&format!("b{trial}"), n, 1.0);
        let y = tensor(&x, &[t, k]).linear(&tensor(&w, &[n, k]), Some(&tensor(&bias, &[n])));
        for (act, torch) in acts {
            let after = After { bias: Some(&bias), act, ..After::default() };
            close(&format!("{act:?} {t}x{n}x{k}"), &gemm(&x, &w, k, &after), &torch(&y));
        }
    }
}

#[test]
fn norms() {
    for trial in 0..20 {
        let [t, h] = sizes(trial, [9, 400]);
        let (x, w, b) = (normal("nx", t * h, 2.0), normal("nw", h, 1.0), normal("nb", h, 1.0));
        let (tx, tw, tb) = (tensor(&x, &[t, h]), tensor(&w, &[h]), tensor(&b, &[h]));
        let shape = [h as i64];
        close("rms norm", &rms_norm(&x, &w, 1e-5), &tx.rms_norm(shape, Some(&tw), 1e-5));
        close(
            "layer norm",
            &layer_norm(&x, &w, Some(&b), 1e-5),
            &tx.layer_norm(shape, Some(&tw), Some(&tb), 1e-5, false),
        );
    }
}

#[test]
fn attention_of_cached_and_fresh_tokens() {
    for trial in 0..20 {
        let [kv_heads, groups, dim, kv_len, q_len] = sizes(trial, [3, 4, 64, 70, 70]);
        let (q_len, heads) = (q_len.min(kv_len), kv_heads * groups);
        let q = normal("q", q_len * heads * dim, 1.0);
        let (k, v) = (normal("k", kv_len * kv_heads * dim, 1.0), normal("v", kv_len * kv_heads * dim, 1.0));
        let scale = 1.0 / (dim as f32).sqrt();
        let a = Attention {
            q_heads: heads,
            kv_heads,
            k_dim: dim,
            v_dim: dim,
            mask: Mask::Causal,
            scale,
            soft_cap: None,
            sinks: None,
            slopes: None,
        };
        let by_head = |x: &[f32], len, heads| tensor(x, &[1, len, heads, dim]).transpose(1, 2);
        let wide =
            |x: &[f32]| by_head(x, kv_len, kv_heads).repeat_interleave_self_int(groups as i64, 1, None);
        let seen = Tensor::ones([q_len as i64, kv_len as i64], (Kind::Bool, tch::Device::Cpu))
            .tril((kv_len - q_len) as i64);
        let out = Tensor::scaled_dot_product_attention(
            &by_head(&q, q_len, heads),
            &wide(&k),
            &wide(&v),
            Some(seen),
            0.0,
            false,
            f64::from(scale),
            false,
        );
        close(&format!("attention {trial}"), &attend(&a, &q, &k, &v).0, &out.transpose(1, 2));
    }
}

#[test]
fn choices_and_log_probabilities() {
    for trial in 0..20 {
        let [vocab] = sizes(trial, [5000]);
        let logits = normal(&format!("logits{trial}"), vocab, 4.0);
        let expected = Vec::<f32>::try_from(tensor(&logits, &[vocab]).log_softmax(-1, Kind::Float)).unwrap();
        let got = logprobs(&logits, 0, vocab.min(7));
        for (id, value) in got.ids.iter().zip(&got.values) {
            assert!((value - expected[*id as usize]).abs() < 2e-5, "{id} of {vocab}");
        }
        let k = vocab.min(9);
        let (values, _) = tensor(&logits, &[vocab]).topk(k as i64, -1, true, true);
        close("top-k", &top_k(&logits, vocab, k).1, &values);
    }
}

#[test]
fn roundings() {
    let x = normal("round", 5000, 300.0);
    for (to, kind) in [(DType::Bf16, Kind::BFloat16), (DType::F16, Kind::Half)] {
        let rounded: Vec<f32> = x.iter().map(|x| dtype::round(to, *x)).collect();
        let torch = Vec::<f32>::try_from(tensor(&x, &[x.len()]).to_kind(kind).to_kind(Kind::Float)).unwrap();
        assert_eq!(rounded, torch, "{to}");
    }
}
