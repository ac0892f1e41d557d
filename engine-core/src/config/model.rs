//! [`ModelConfig`]: `config.json` typed and checked, for decoder models of the Llama kind (Llama, Mistral, Qwen2,
//! Qwen3 and everything built like them).
//!
//! It holds what the file says, with the defaults that Hugging Face's classes give to keys a file leaves out. What
//! a family makes of a value (whether Qwen2's projections have a bias, say) is decided by the family's own file;
//! keys known to one family alone are read through [`ModelConfig::fields`].

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::fields::{Fields, brief, read_json};
use super::rope::{RopeConfig, RopeContext, RopeScaling};
use crate::limits::{MAX_LAYERS, MAX_MODEL_LEN, MAX_MODEL_WIDTH};
use crate::{DType, Error, Result};

const FILE: &str = "config.json";

/// A decoder model's shape and rules.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// Class names; the model registry decides which it knows.
    pub architectures: Vec<String>,
    /// Hugging Face's name of the family (`llama`, `qwen2`, ...); empty when absent.
    pub model_type: String,
    pub vocab_size: u32,
    pub hidden_size: u32,
    pub intermediate_size: u32,
    pub num_hidden_layers: u32,
    pub num_attention_heads: u32,
    /// Divides `num_attention_heads`.
    pub num_key_value_heads: u32,
    /// Elements of one head; even.
    pub head_dim: u32,
    pub hidden_act: HiddenAct,
    pub rms_norm_eps: f32,
    /// As the file says it; the context length to serve is [`ModelConfig::max_model_len`].
    pub max_position_embeddings: u32,
    pub rope: RopeConfig,
    /// One entry a layer: how many positions back attention reaches, or `None` for all.
    pub layer_windows: Vec<Option<u32>>,
    /// `None` when absent: families differ in what that means.
    pub attention_bias: Option<bool>,
    pub mlp_bias: bool,
    pub tie_word_embeddings: bool,
    /// Standard deviation that random weights are drawn with.
    pub initializer_range: f32,
    /// Element type the weights were saved in.
    pub dtype: Option<DType>,
    pub bos_token_id: Option<u32>,
    /// End-of-sequence ids; may be empty.
    pub eos_token_ids: Vec<u32>,
    pub pad_token_id: Option<u32>,
    /// As it stands in the file; `quant/` reads it.
    pub quantization_config: Option<Value>,
    raw: Arc<Map<String, Value>>,
}

/// Activation of the feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HiddenAct {
    Silu,
    /// Exact, by the error function.
    Gelu,
    /// The tanh approximation.
    GeluTanh,
    Relu,
}

impl ModelConfig {
    /// Reads `dir/config.json`, with `overrides` (`--hf-overrides`) laid over it.
    ///
    /// # Errors
    /// [`Error::Io`] when the file is missing, [`Error::Config`] naming the key, its value and what is wanted.
    pub fn from_dir(dir: &Path, overrides: Option<&Map<String, Value>>) -> Result<Self> {
        let path = dir.join(FILE);
        if !path.exists() {
            return Err(Error::Config(format!(
                "{}: has no {FILE}; a model directory in Hugging Face layout is wanted",
                dir.display()
            )));
        }
        let mut map = read_json(&path)?;
        apply_overrides(&mut map, overrides.unwrap_or(&Map::new()));
        Self::from_json(map)
    }

    /// The same from an object in hand.
    ///
    /// # Errors
    /// [`Error::Config`], as [`ModelConfig::from_dir`].
    pub fn from_json(map: Map<String, Value>) -> Result<Self> {
        let f = Fields::new(FILE, &map);
        let model_type = f.str("model_type")?.unwrap_or_default();
        let defaults = Defaults::of(model_type);
        let num_hidden_layers = bounded(&f, "num_hidden_layers", MAX_LAYERS)?;
        let heads = Heads::read(&f, &defaults)?;
        let max_position_embeddings =
            f.u32("max_position_embeddings", 1)?.unwrap_or(defaults.max_position_embeddings);
        let context =
            RopeContext { head_dim: heads.head_dim, max_position_embeddings, default_theta: 10_000.0 };
        let mut config = ModelConfig {
            architectures: f.strings("architectures")?,
            model_type: model_type.to_owned(),
            vocab_size: bounded(&f, "vocab_size", MAX_MODEL_WIDTH)?,
            hidden_size: bounded(&f, "hidden_size", MAX_MODEL_WIDTH)?,
            intermediate_size: bounded(&f, "intermediate_size", MAX_MODEL_WIDTH)?,
            num_hidden_layers,
            num_attention_heads: heads.attention,
            num_key_value_heads: heads.key_value,
            head_dim: heads.head_dim,
            hidden_act: HiddenAct::read(&f)?,
            rms_norm_eps: rms_norm_eps(&f)?,
            max_position_embeddings,
            rope: RopeConfig::from_fields(&f, context)?,
            layer_windows: layer_windows(&f, &defaults, num_hidden_layers)?,
            attention_bias: f.bool("attention_bias")?,
            mlp_bias: f.bool("mlp_bias")?.unwrap_or(false),
            tie_word_embeddings: f.bool("tie_word_embeddings")?.unwrap_or(false),
            initializer_range: f.positive("initializer_range")?.unwrap_or(0.02) as f32,
            dtype: dtype(&f)?,
            bos_token_id: f.token_id("bos_token_id")?,
            eos_token_ids: f.token_ids("eos_token_id")?,
            pad_token_id: pad_token_id(&f)?,
            quantization_config: quantization(&f)?,
            raw: Arc::new(Map::new()),
        };
        config.raw = Arc::new(map);
        Ok(config)
    }

    /// Look-ups of keys that are not fields here.
    pub fn fields(&self) -> Fields<'_> {
        Fields::new(FILE, &self.raw)
    }

    /// The attention window of a layer.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn window(&self, layer: u32) -> Option<u32> {
        self.layer_windows[layer as usize]
    }

    /// The context length to serve: the derived one, or `wanted` if it is not longer. Derived as vLLM does:
    /// `max_position_embeddings`, times the factor of linear, dynamic and YaRN scaling (for YaRN of the original
    /// length); llama3 and longrope configurations already name the scaled length.
    ///
    /// # Errors
    /// [`Error::Config`] naming both lengths when `wanted` is longer.
    pub fn max_model_len(&self, wanted: Option<u32>) -> Result<u32> {
        let (derived, because) = self.derived_model_len()?;
        let derived = derived.min(MAX_MODEL_LEN);
        let wanted = wanted.unwrap_or(derived);
        // Some configurations state a longer limit of their own under this name.
        let stated = self.fields().u32("model_max_length", 1)?.unwrap_or(0);
        if wanted == 0 || wanted > derived.max(stated).min(MAX_MODEL_LEN) {
            return Err(Error::Config(format!(
                "--max-model-len {wanted}: the model's context is {derived} tokens ({because}); \
                 a value from 1 to {derived} is wanted, or rope scaling through --hf-overrides"
            )));
        }
        Ok(wanted)
    }

    fn derived_model_len(&self) -> Result<(u32, String)> {
        let (key, base) = self.stated_length()?;
        let scaled = |base: u32, factor: f64| (f64::from(base) * factor) as u32;
        let name = self.rope.scaling.name();
        Ok(match &self.rope.scaling {
            RopeScaling::Linear { factor } | RopeScaling::Dynamic { factor, .. } => {
                (scaled(base, *factor), format!("{key} {base} × {name} rope factor {factor}"))
            }
            RopeScaling::Yarn(y) => {
                let (base, factor) = (y.original_max_position, y.factor);
                let because =
                    format!("original_max_position_embeddings {base} × {name} rope factor {factor}");
                (scaled(base, factor), because)
            }
            RopeScaling::None | RopeScaling::Llama3 { .. } | RopeScaling::LongRope(_) => {
                (base, format!("{key} {base}"))
            }
        })
    }

    /// The least of the lengths a file may state, and its key; the family's default when it states none.
    fn stated_length(&self) -> Result<(&'static str, u32)> {
        const KEYS: [&str; 7] = [
            "max_position_embeddings",
            "n_positions",
            "max_seq_len",
            "seq_length",
            "max_target_positions",
            "max_sequence_length",
            "max_seq_length",
        ];
        let fields = self.fields();
        let mut least = None;
        for key in KEYS {
            if let Some(n) = fields.u32(key, 1)?
                && least.is_none_or(|(_, m)| n < m)
            {
                least = Some((key, n));
            }
        }
        Ok(least.unwrap_or(("default max_position_embeddings", self.max_position_embeddings)))
    }
}

/// Lays `overrides` over `base`: values replace values, but objects under keys that end in `_config` merge. A
/// rope override reaches configurations of every spelling.
pub fn apply_overrides(base: &mut Map<String, Value>, overrides: &Map<String, Value>) {
    let touches_rope = ["rope_scaling", "rope_theta"].iter().any(|k| overrides.contains_key(*k));
    if touches_rope && let Some(Value::Object(rope)) = base.remove("rope_parameters") {
        if let Some(theta) = rope.get("rope_theta") {
            base.insert("rope_theta".to_owned(), theta.clone());
        }
        base.insert("rope_scaling".to_owned(), Value::Object(rope));
        if let (Some(theta), Some(Value::Object(rope))) =
            (overrides.get("rope_theta"), base.get_mut("rope_scaling"))
        {
            rope.insert("rope_theta".to_owned(), theta.clone());
        }
    }
    for (key, value) in overrides {
        match (base.get_mut(key), value) {
            (Some(Value::Object(old)), Value::Object(new)) if key.ends_with("_config") => {
                apply_overrides(old, new);
            }
            _ => {
                base.insert(key.clone(), value.clone());
            }
        }
    }
}

/// What a family's Hugging Face class assumes where a file is silent.
struct Defaults {
    max_position_embeddings: u32,
    head_dim: Option<u32>,
    window: WindowRule,
}

/// Which layers a file's `sliding_window` is meant for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WindowRule {
    /// The family has no windows, whatever the key says.
    Never,
    /// All layers.
    Always,
    /// Layers from `max_window_layers` on, and only with `use_sliding_window`.
    WhenUsed,
}

impl Defaults {
    fn of(model_type: &str) -> Self {
        let new = |max_position_embeddings, head_dim, window| Defaults {
            max_position_embeddings,
            head_dim,
            window,
        };
        match model_type {
            "mistral" => new(131_072, None, WindowRule::Always),
            "qwen2" | "qwen2_moe" => new(32_768, None, WindowRule::WhenUsed),
            "qwen3" | "qwen3_moe" => new(32_768, Some(128), WindowRule::WhenUsed),
            "llama" => new(2_048, None, WindowRule::Never),
            _ => new(2_048, None, WindowRule::WhenUsed),
        }
    }
}

struct Heads {
    attention: u32,
    key_value: u32,
    head_dim: u32,
}

impl Heads {
    fn read(f: &Fields<'_>, defaults: &Defaults) -> Result<Self> {
        let attention = bounded(f, "num_attention_heads", MAX_MODEL_WIDTH)?;
        let key_value = f.u32("num_key_value_heads", 1)?.unwrap_or(attention);
        if attention % key_value != 0 {
            return Err(
                f.wrong("num_key_value_heads", &format!("a divisor of num_attention_heads ({attention})"))
            );
        }
        let hidden = f.count("hidden_size")?;
        let head_dim = match f.u32("head_dim", 1)?.or(defaults.head_dim) {
            Some(head_dim) => head_dim,
            None if hidden % attention == 0 => hidden / attention,
            None => {
                let wanted = format!("a multiple of num_attention_heads ({attention}), or a head_dim,");
                return Err(f.wrong("hidden_size", &wanted));
            }
        };
        if head_dim > MAX_MODEL_WIDTH / attention {
            return Err(f.error(format_args!(
                "{attention} heads of {head_dim} elements; at most {MAX_MODEL_WIDTH} elements in all are wanted"
            )));
        }
        Ok(Heads { attention, key_value, head_dim })
    }
}

impl HiddenAct {
    fn read(f: &Fields<'_>) -> Result<Self> {
        match f.str("hidden_act")?.unwrap_or("silu") {
            "silu" | "swish" => Ok(HiddenAct::Silu),
            "gelu" => Ok(HiddenAct::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_tanh" => Ok(HiddenAct::GeluTanh),
            "relu" => Ok(HiddenAct::Relu),
            _ => Err(f.wrong("hidden_act", "one of silu, gelu, gelu_new, gelu_pytorch_tanh, relu")),
        }
    }
}

fn bounded(f: &Fields<'_>, key: &str, most: u32) -> Result<u32> {
    match f.count(key)? {
        n if n <= most => Ok(n),
        _ => Err(f.wrong(key, &format!("a whole number from 1 to {most}"))),
    }
}

fn rms_norm_eps(f: &Fields<'_>) -> Result<f32> {
    match f.f64("rms_norm_eps")?.unwrap_or(1e-6) as f32 {
        eps if eps > 0.0 && eps < 1.0 => Ok(eps),
        _ => Err(f.wrong("rms_norm_eps", "a number above 0 and below 1, such as 1e-5,")),
    }
}

/// `dtype` (newer) or `torch_dtype`, with or without the `torch.` that some files carry.
fn dtype(f: &Fields<'_>) -> Result<Option<DType>> {
    let key = if f.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
    let Some(name) = f.str(key)? else { return Ok(None) };
    match name.strip_prefix("torch.").unwrap_or(name) {
        "float32" | "float" => Ok(Some(DType::F32)),
        "float16" | "half" => Ok(Some(DType::F16)),
        "bfloat16" => Ok(Some(DType::Bf16)),
        "auto" => Ok(None),
        _ => Err(f.wrong(key, "one of float32, float16, bfloat16")),
    }
}

/// Some files write -1 for "none".
fn pad_token_id(f: &Fields<'_>) -> Result<Option<u32>> {
    match f.get("pad_token_id").and_then(Value::as_i64) {
        Some(-1) => Ok(None),
        _ => f.token_id("pad_token_id"),
    }
}

fn quantization(f: &Fields<'_>) -> Result<Option<Value>> {
    for key in ["quantization_config", "compression_config"] {
        if let Some(object) = f.object(key)? {
            return Ok(Some(Value::Object(object.clone())));
        }
    }
    Ok(None)
}

fn layer_windows(f: &Fields<'_>, defaults: &Defaults, layers: u32) -> Result<Vec<Option<u32>>> {
    let window = f.u32("sliding_window", 1)?;
    if f.get("layer_types").is_some() {
        return windows_by_type(f, window, layers);
    }
    let first = match defaults.window {
        WindowRule::Never => layers,
        WindowRule::Always => 0,
        WindowRule::WhenUsed if f.bool("use_sliding_window")?.unwrap_or(false) => {
            f.u32("max_window_layers", 0)?.unwrap_or(28)
        }
        WindowRule::WhenUsed => layers,
    };
    Ok((0..layers).map(|layer| window.filter(|_| layer >= first)).collect())
}

fn windows_by_type(f: &Fields<'_>, window: Option<u32>, layers: u32) -> Result<Vec<Option<u32>>> {
    let types = f.strings("layer_types")?;
    let unused = f.bool("use_sliding_window")? == Some(false);
    if types.len() != layers as usize {
        return Err(f.error(format_args!(
            "layer_types names {} layers, but num_hidden_layers is {layers}; one entry a layer is wanted",
            types.len()
        )));
    }
    let one = |(layer, name): (usize, &String)| match (name.as_str(), window) {
        ("full_attention", _) => Ok(None),
        ("sliding_attention", _) if unused => Ok(None),
        ("sliding_attention", Some(window)) => Ok(Some(window)),
        ("sliding_attention", None) => Err(f.error(format_args!(
            "layer_types[{layer}] is sliding_attention, but sliding_window is missing; its width is wanted"
        ))),
        _ => Err(f.error(format_args!(
            "layer_types[{layer}] is {}; full_attention or sliding_attention is wanted",
            brief(&Value::from(name.as_str()))
        ))),
    };
    types.iter().enumerate().map(one).collect()
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
