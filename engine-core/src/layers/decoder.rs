//! A decoder-only transformer from its description: what Llama, Mistral and Qwen have in common.
//!
//! A family's file fills in a [`DecoderSpec`]; [`Decoder::load`] turns it and a weight source into a model.

use super::attention::{Attention, AttentionShape};
use super::mlp::Mlp;
use super::rope::rope_table;
use super::{Hidden, StepContext};
use crate::backend::{
    Act, Activation, AttnSpec, Epilogue, Fuse, KvGroupSpec, KvKind, Mask, Op, Stream, Uses, Weight,
};
use crate::config::ModelConfig;
use crate::error::Result;
use crate::loader::source::WeightLoader;
use crate::tensor::{DType, Tensor};

/// Whether a projection carries a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    No,
    Yes,
}

impl Bias {
    /// From a configuration's flag.
    pub fn when(flag: bool) -> Self {
        if flag { Bias::Yes } else { Bias::No }
    }
}

/// What a family fills in: everything `ModelConfig` leaves to it.
#[derive(Clone, Copy, Debug)]
pub struct DecoderSpec {
    pub qkv_bias: Bias,
    pub o_bias: Bias,
    pub mlp_bias: Bias,
    /// Per-head RMS norm of q and k before the rotation.
    pub qk_norm: bool,
    pub act: Activation,
}

/// Which KV group a layer belongs to, and its index within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerPlace {
    pub group: u32,
    pub index: u32,
}

/// How a model's layers share page tables: groups of one window kind and an equal number of layers, so that all
/// pages of the pool are of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// Per group: window (None is full attention) and number of layers.
    pub groups: Vec<(Option<u32>, u32)>,
    /// Per layer.
    pub places: Vec<LayerPlace>,
}

impl KvLayout {
    /// From each layer's window. The rarest kind sets the group size; a last group may be smaller.
    pub fn of(windows: &[Option<u32>]) -> Self {
        let mut kinds: Vec<(Option<u32>, u32)> = Vec::new();
        for w in windows {
            match kinds.iter_mut().find(|k| k.0 == *w) {
                Some(kind) => kind.1 += 1,
                None => kinds.push((*w, 1)),
            }
        }
        let size = kinds.iter().map(|k| k.1).min().unwrap_or(1);
        let mut layout = KvLayout { groups: Vec::new(), places: Vec::with_capacity(windows.len()) };
        for w in windows {
            let open = layout.groups.iter().position(|g| g.0 == *w && g.1 < size);
            let group = open.unwrap_or_else(|| {
                layout.groups.push((*w, 0));
                layout.groups.len() - 1
            });
            let index = layout.groups[group].1;
            layout.groups[group].1 += 1;
            layout.places.push(LayerPlace { group: group as u32, index });
        }
        layout
    }
}

/// A decoder before its weights: what sizes are decided from.
#[derive(Clone, Debug)]
pub struct DecoderPlan {
    spec: DecoderSpec,
    layout: KvLayout,
    shape: DecoderShape,
}

impl DecoderPlan {
    /// From a configuration and what its family makes of it.
    pub fn new(c: &ModelConfig, spec: DecoderSpec) -> Self {
        let shape = DecoderShape {
            vocab: c.vocab_size,
            hidden: c.hidden_size,
            q_heads: c.num_attention_heads,
            kv_heads: c.num_key_value_heads,
            head_dim: c.head_dim,
            eps: c.rms_norm_eps,
        };
        DecoderPlan { spec, layout: KvLayout::of(&c.layer_windows), shape }
    }

    /// How layers share page tables.
    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// KV groups for the backend's pool.
    pub fn kv_groups(&self, dtype: DType, page_tokens: u32) -> Vec<KvGroupSpec> {
        let spec = |(window, layers): &(Option<u32>, u32)| KvGroupSpec {
            kind: window.map_or(KvKind::Full, |tokens| KvKind::Window { tokens }),
            layers: *layers,
            kv_heads: self.shape.kv_heads,
            k_dim: self.shape.head_dim,
            v_dim: self.shape.head_dim,
            dtype,
            page_tokens,
        };
        self.layout.groups.iter().map(spec).collect()
    }

    /// One attention spec per KV group.
    pub fn attn_specs(&self, dtype: DType, kv_dtype: DType, page_tokens: u32) -> Vec<AttnSpec> {
        let spec = |(group, (window, _)): (usize, &(Option<u32>, u32))| AttnSpec {
            group: group as u32,
            q_heads: self.shape.q_heads,
            kv_heads: self.shape.kv_heads,
            k_dim: self.shape.head_dim,
            v_dim: self.shape.head_dim,
            mask: window.map_or(Mask::Causal, |tokens| Mask::Window { tokens }),
            q_dtype: dtype,
            kv_dtype,
            page_tokens,
        };
        self.layout.groups.iter().enumerate().map(spec).collect()
    }
}

/// A loaded decoder.
pub struct Decoder {
    embed: Weight,
    layers: Vec<(Attention, Mlp)>,
    norm: Weight,
    head: Weight,
    plan: DecoderPlan,
}

/// Sizes the engine asks a model for.
#[derive(Clone, Copy, Debug)]
pub struct DecoderShape {
    pub vocab: u32,
    pub hidden: u32,
    pub q_heads: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    pub eps: f32,
}

impl Decoder {
    /// Loads every weight. `positions` is the longest context to serve: the length of the rope table.
    ///
    /// # Errors
    /// A missing, misshapen or unreadable tensor, by name; too little memory.
    pub fn load(l: &WeightLoader<'_>, c: &ModelConfig, plan: &DecoderPlan, positions: u32) -> Result<Self> {
        let (spec, layout) = (&plan.spec, &plan.layout);
        let rope = l.table("rope", &rope_table(&c.rope, positions), c.rope.rotary_dim)?;
        // The largest first, so that at the end no thread is left alone with one.
        let loaded = l.parallel(c.num_hidden_layers + 2, |job| match job {
            0 => load_embedding(l, c).map(|w| Loaded::Matrix(Some(w))),
            1 => load_head(l, c).map(Loaded::Matrix),
            _ => {
                let i = job - 2;
                let attention = load_attention(l, c, spec, i, layout.places[i as usize], &rope)?;
                Ok(Loaded::Layer(Box::new((attention, load_mlp(l, c, spec, i)?))))
            }
        })?;
        let mut loaded = loaded.into_iter();
        let (Some(Loaded::Matrix(Some(embed))), Some(Loaded::Matrix(head))) = (loaded.next(), loaded.next())
        else {
            unreachable!("jobs 0 and 1 are matrices");
        };
        let head = head.unwrap_or_else(|| embed.clone());
        let layers = loaded.filter_map(Loaded::into_layer).collect();
        let norm = l.vector("model.norm.weight", c.hidden_size)?;
        Ok(Decoder { embed, layers, norm, head, plan: plan.clone() })
    }

    /// What it was made from.
    pub fn plan(&self) -> &DecoderPlan {
        &self.plan
    }

    /// Device memory of all weights.
    pub fn weight_bytes(&self) -> u64 {
        let layer = |(a, m): &(Attention, Mlp)| {
            let norms = a.qk_norm.iter().flat_map(|(q, k)| [q, k]);
            let biases = [&a.qkv_bias, &a.o_bias, &m.gate_up_bias, &m.down_bias].into_iter().flatten();
            let all = [&a.norm, &a.qkv, &a.o, &m.norm, &m.gate_up, &m.down];
            all.into_iter().chain(norms).chain(biases).map(|w| w.meta().bytes).sum::<u64>()
        };
        let head = if self.head.meta().uses == Uses::Both { 0 } else { self.head.meta().bytes };
        let rope = self.layers.first().map_or(0, |l| l.0.rope.meta().bytes);
        let layers: u64 = self.layers.iter().map(layer).sum();
        layers + self.embed.meta().bytes + head + self.norm.meta().bytes + rope
    }

    /// The decoder layers over ids [T] i32: the residual stream [T, H] after the last one, before the final norm.
    pub fn forward(&self, s: &mut dyn Stream, ctx: &StepContext<'_>, ids: Tensor) -> Result<Tensor> {
        let residual = s.scratch(&[ids.len() as u32, self.plan.shape.hidden], ctx.dtype);
        s.op(&Op::Embed { table: &self.embed, ids, out: residual })?;
        let mut h = Hidden { residual, delta: None };
        for (attention, mlp) in &self.layers {
            h = attention.forward(s, ctx, h)?;
            h = mlp.forward(s, ctx, h)?;
        }
        Ok(h.residual)
    }

    /// Logits [L, V] f32 of the rows [L] i32 of `hidden` [T, H].
    pub fn logits(&self, s: &mut dyn Stream, hidden: Tensor, rows: Tensor) -> Result<Tensor> {
        let count = rows.len() as u32;
        let logits = s.scratch(&[count, self.plan.shape.vocab], DType::F32);
        let mark = s.mark();
        let picked = s.scratch(&[count, self.plan.shape.hidden], hidden.dtype());
        s.op(&Op::GatherRows { x: hidden, rows, out: picked })?;
        s.op(&Op::NormLinear {
            x: picked,
            residual: None,
            norm: &self.norm,
            eps: self.plan.shape.eps,
            w: &self.head,
            e: Epilogue::default(),
            out: Act::from(logits),
        })?;
        s.release(mark);
        Ok(logits)
    }
}

/// What one job of the loader threads makes.
enum Loaded {
    Matrix(Option<Weight>),
    Layer(Box<(Attention, Mlp)>),
}

impl Loaded {
    fn into_layer(self) -> Option<(Attention, Mlp)> {
        match self {
            Loaded::Layer(layer) => Some(*layer),
            Loaded::Matrix(_) => None,
        }
    }
}

fn load_embedding(l: &WeightLoader<'_>, c: &ModelConfig) -> Result<Weight> {
    let uses = if c.tie_word_embeddings { Uses::Both } else { Uses::Embed };
    l.matrix(&["model.embed_tokens.weight"], &[c.vocab_size], c.hidden_size, Fuse::One, uses)
}

/// None where the embedding is the head too.
fn load_head(l: &WeightLoader<'_>, c: &ModelConfig) -> Result<Option<Weight>> {
    if c.tie_word_embeddings {
        return Ok(None);
    }
    l.matrix(&["lm_head.weight"], &[c.vocab_size], c.hidden_size, Fuse::One, Uses::Linear).map(Some)
}

fn load_attention(
    l: &WeightLoader<'_>,
    c: &ModelConfig,
    spec: &DecoderSpec,
    layer: u32,
    place: LayerPlace,
    rope: &Weight,
) -> Result<Attention> {
    let at = |part: &str| format!("model.layers.{layer}.self_attn.{part}");
    let (q, kv, d) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim, c.head_dim);
    let qkv_names = ["q_proj", "k_proj", "v_proj"];
    let names = qkv_names.map(|p| at(&format!("{p}.weight")));
    let biases = qkv_names.map(|p| at(&format!("{p}.bias")));
    let qk_norm = match spec.qk_norm {
        true => Some((l.vector(&at("q_norm.weight"), d)?, l.vector(&at("k_norm.weight"), d)?)),
        false => None,
    };
    Ok(Attention {
        norm: l.vector(&format!("model.layers.{layer}.input_layernorm.weight"), c.hidden_size)?,
        qkv: l.matrix(
            &names.each_ref().map(|n| n.as_str()),
            &[q, kv, kv],
            c.hidden_size,
            Fuse::Stack,
            Uses::Linear,
        )?,
        qkv_bias: l.bias(spec.qkv_bias, &biases.each_ref().map(|n| n.as_str()), &[q, kv, kv], Fuse::Stack)?,
        o: l.matrix(&[&at("o_proj.weight")], &[c.hidden_size], q, Fuse::One, Uses::Linear)?,
        o_bias: l.bias(spec.o_bias, &[&at("o_proj.bias")], &[c.hidden_size], Fuse::One)?,
        qk_norm,
        rope: rope.clone(),
        shape: AttentionShape {
            q_heads: c.num_attention_heads,
            kv_heads: c.num_key_value_heads,
            head_dim: d,
            eps: c.rms_norm_eps,
            scale: 1.0 / (d as f32).sqrt(),
            group: place.group,
            index: place.index,
        },
    })
}

fn load_mlp(l: &WeightLoader<'_>, c: &ModelConfig, spec: &DecoderSpec, layer: u32) -> Result<Mlp> {
    let at = |part: &str| format!("model.layers.{layer}.mlp.{part}");
    let (h, i) = (c.hidden_size, c.intermediate_size);
    let (gate, up) = (at("gate_proj.weight"), at("up_proj.weight"));
    let (gate_bias, up_bias) = (at("gate_proj.bias"), at("up_proj.bias"));
    Ok(Mlp {
        norm: l.vector(&format!("model.layers.{layer}.post_attention_layernorm.weight"), h)?,
        gate_up: l.matrix(&[&gate, &up], &[i, i], h, Fuse::GateUp, Uses::Linear)?,
        gate_up_bias: l.bias(spec.mlp_bias, &[&gate_bias, &up_bias], &[i, i], Fuse::GateUp)?,
        down: l.matrix(&[&at("down_proj.weight")], &[h], i, Fuse::One, Uses::Linear)?,
        down_bias: l.bias(spec.mlp_bias, &[&at("down_proj.bias")], &[h], Fuse::One)?,
        act: spec.act,
        eps: c.rms_norm_eps,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_equal_sized_and_of_one_kind() {
        assert_eq!(KvLayout::of(&[None; 3]).groups, [(None, 3)]);
        let mixed = [Some(8), None, Some(8), Some(8), None, Some(8), Some(8)];
        let layout = KvLayout::of(&mixed);
        assert_eq!(layout.groups, [(Some(8), 2), (None, 2), (Some(8), 2), (Some(8), 1)]);
        assert_eq!(layout.places[3], LayerPlace { group: 2, index: 0 });
        assert_eq!(layout.places[4], LayerPlace { group: 1, index: 1 });
    }
}
