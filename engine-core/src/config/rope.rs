//! Rotary position embedding as configured: base, rotated width, and how positions beyond training are scaled.
//!
//! Three spellings are read: `rope_theta` + `rope_scaling` with `type` (old) or `rope_type` (newer), and the one
//! object `rope_parameters` (newest). Names and defaults are those of Hugging Face's `modeling_rope_utils`.

use serde_json::{Map, Value};

use super::fields::Fields;
use crate::Result;

/// Rotary embedding of every layer.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Leading elements of each head that are rotated; even, at most the head size.
    pub rotary_dim: u32,
    pub scaling: RopeScaling,
}

/// How frequencies or positions are changed for contexts longer than training's.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Plain rotary embedding.
    None,
    /// Positions divided by `factor`.
    Linear { factor: f64 },
    /// NTK-aware: the base grows with the length once it passes the original one.
    Dynamic { factor: f64, original_max_position: u32 },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 { factor: f64, low_freq_factor: f64, high_freq_factor: f64, original_max_position: u32 },
    /// YaRN: interpolation by parts, and a factor on the attention logits.
    Yarn(Yarn),
    /// One divisor per frequency, one set up to the original length and one beyond.
    LongRope(LongRope),
}

/// Parameters of YaRN (arXiv 2309.00071).
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    pub factor: f64,
    pub original_max_position: u32,
    pub beta_fast: f64,
    pub beta_slow: f64,
    /// Given: used as is. Otherwise it follows from `factor`, `mscale` and `mscale_all_dim`.
    pub attention_factor: Option<f64>,
    pub mscale: Option<f64>,
    pub mscale_all_dim: Option<f64>,
    /// Whether the ramp's bounds are rounded to whole dimensions.
    pub truncate: bool,
}

/// Parameters of LongRoPE (arXiv 2402.13753).
#[derive(Clone, Debug, PartialEq)]
pub struct LongRope {
    /// `rotary_dim / 2` divisors for contexts up to `original_max_position`.
    pub short_factor: Vec<f64>,
    /// `rotary_dim / 2` divisors for longer ones.
    pub long_factor: Vec<f64>,
    pub original_max_position: u32,
    /// Ratio of the longest context to the original one.
    pub factor: f64,
    /// Given: used as is. Otherwise it is `sqrt(1 + ln(factor) / ln(original_max_position))`.
    pub attention_factor: Option<f64>,
}

/// What the rope parameters are checked against.
#[derive(Clone, Copy)]
pub(super) struct RopeContext {
    pub head_dim: u32,
    pub max_position_embeddings: u32,
    pub default_theta: f64,
}

impl RopeConfig {
    /// Reads the top level of a config.json.
    pub(super) fn from_fields(top: &Fields<'_>, context: RopeContext) -> Result<Self> {
        let (key, object) = match top.object("rope_parameters")? {
            Some(map) => ("rope_parameters.", Some(map)),
            None => ("rope_scaling.", top.object("rope_scaling")?),
        };
        let empty = Map::new();
        let inner = top.nested(key, object.unwrap_or(&empty));
        if let Some((name, _)) = object.and_then(|m| m.iter().find(|(_, v)| is_per_layer_type(v))) {
            return Err(top.error(format_args!(
                "{key}{name} gives one kind of layer its own rotary embedding; one for all layers is wanted"
            )));
        }
        let theta = match inner.positive("rope_theta")? {
            Some(theta) => Some(theta),
            None => top.positive("rope_theta")?,
        };
        let partial = match inner.positive("partial_rotary_factor")? {
            Some(partial) => Some(partial),
            None => top.positive("partial_rotary_factor")?,
        };
        let rotary_dim = rotary_dim(top, partial.unwrap_or(1.0), context.head_dim)?;
        let scaling = RopeScaling::from_fields(top, &inner, rotary_dim, context)?;
        Ok(RopeConfig { theta: theta.unwrap_or(context.default_theta), rotary_dim, scaling })
    }
}

impl RopeScaling {
    /// The name of the scheme as `rope_type` spells it.
    pub fn name(&self) -> &'static str {
        match self {
            RopeScaling::None => "default",
            RopeScaling::Linear { .. } => "linear",
            RopeScaling::Dynamic { .. } => "dynamic",
            RopeScaling::Llama3 { .. } => "llama3",
            RopeScaling::Yarn(_) => "yarn",
            RopeScaling::LongRope(_) => "longrope",
        }
    }

    fn from_fields(
        top: &Fields<'_>,
        f: &Fields<'_>,
        rotary_dim: u32,
        context: RopeContext,
    ) -> Result<RopeScaling> {
        let key = if f.get("rope_type").is_some() { "rope_type" } else { "type" };
        let Some(name) = f.str(key)? else {
            return match f.get("factor") {
                Some(_) => Err(f.wrong("rope_type", "the scheme that `factor` belongs to")),
                None => Ok(RopeScaling::None),
            };
        };
        match name {
            "default" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor: f.required_positive("factor")? }),
            "dynamic" => Ok(RopeScaling::Dynamic {
                factor: f.required_positive("factor")?,
                original_max_position: original(top, f)?.unwrap_or(context.max_position_embeddings),
            }),
            "llama3" => llama3(top, f),
            "yarn" => yarn(top, f, context),
            "longrope" | "su" => longrope(top, f, rotary_dim, context),
            _ => Err(f.wrong(key, "one of default, linear, dynamic, llama3, yarn, longrope")),
        }
    }
}

fn is_per_layer_type(value: &Value) -> bool {
    value.is_object()
}

fn rotary_dim(top: &Fields<'_>, partial: f64, head_dim: u32) -> Result<u32> {
    let dim = (f64::from(head_dim) * partial) as u32;
    if partial > 1.0 || dim == 0 || !dim.is_multiple_of(2) {
        return Err(top.error(format_args!(
            "{dim} of each head's {head_dim} elements would be rotated (head_dim × \
             partial_rotary_factor {partial}); an even number from 2 to head_dim is wanted{}",
            if top.get("head_dim").is_none() {
                " (head_dim is hidden_size / num_attention_heads)"
            } else {
                ""
            }
        )));
    }
    Ok(dim)
}

/// `original_max_position_embeddings`, inside the scaling object or (Phi-3) beside it.
fn original(top: &Fields<'_>, f: &Fields<'_>) -> Result<Option<u32>> {
    let key = "original_max_position_embeddings";
    Ok(match f.u32(key, 1)? {
        Some(inner) => Some(inner),
        None => top.u32(key, 1)?,
    })
}

fn llama3(top: &Fields<'_>, f: &Fields<'_>) -> Result<RopeScaling> {
    let low_freq_factor = f.required_positive("low_freq_factor")?;
    let high_freq_factor = f.required_positive("high_freq_factor")?;
    if high_freq_factor <= low_freq_factor {
        return Err(f.wrong("high_freq_factor", &format!("more than low_freq_factor ({low_freq_factor})")));
    }
    let original_max_position = original(top, f)?
        .ok_or_else(|| f.wrong("original_max_position_embeddings", "the context length of training"))?;
    let factor = f.required_positive("factor")?;
    Ok(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position })
}

fn yarn(top: &Fields<'_>, f: &Fields<'_>, context: RopeContext) -> Result<RopeScaling> {
    let beta_fast = f.positive("beta_fast")?.unwrap_or(32.0);
    let beta_slow = f.positive("beta_slow")?.unwrap_or(1.0);
    if beta_fast < beta_slow {
        return Err(f.wrong("beta_fast", &format!("at least beta_slow ({beta_slow})")));
    }
    Ok(RopeScaling::Yarn(Yarn {
        factor: f.required_positive("factor")?,
        original_max_position: original(top, f)?.unwrap_or(context.max_position_embeddings),
        beta_fast,
        beta_slow,
        attention_factor: f.positive("attention_factor")?,
        mscale: f.f64("mscale")?,
        mscale_all_dim: f.f64("mscale_all_dim")?,
        truncate: f.bool("truncate")?.unwrap_or(true),
    }))
}

fn longrope(top: &Fields<'_>, f: &Fields<'_>, rotary_dim: u32, context: RopeContext) -> Result<RopeScaling> {
    let half = rotary_dim as usize / 2;
    let factors = |key: &str| -> Result<Vec<f64>> {
        let list = f.positives(key)?;
        match list.len() == half {
            true => Ok(list),
            false => Err(f.wrong(key, &format!("a list of {half} numbers (rotated elements / 2)"))),
        }
    };
    let (short_factor, long_factor) = (factors("short_factor")?, factors("long_factor")?);
    let original_max_position = original(top, f)?.unwrap_or(context.max_position_embeddings);
    let ratio = f64::from(context.max_position_embeddings) / f64::from(original_max_position);
    Ok(RopeScaling::LongRope(LongRope {
        short_factor,
        long_factor,
        original_max_position,
        factor: f.positive("factor")?.unwrap_or(ratio),
        attention_factor: f.positive("attention_factor")?,
    }))
}
