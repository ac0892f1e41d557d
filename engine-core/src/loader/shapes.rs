//! Names and shapes of a configuration's weights, for random checkpoints (`--load-format dummy`,
//! `pallium bench make-checkpoint`). Reading a real checkpoint needs none of this.

use crate::config::ModelConfig;
use crate::layers::decoder::{Bias, DecoderSpec};
use crate::models;
use crate::{Error, Result};

/// One tensor to be made: what it is called, its shape, and how its values are drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
    pub mean: f32,
    /// Standard deviation; 0 makes every element `mean`.
    pub std: f32,
}

impl TensorSpec {
    /// Number of elements.
    pub fn len(&self) -> u64 {
        self.shape.iter().product()
    }
    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Every tensor of a model of this configuration, in the order of a forward pass: norm weights around 1, the rest
/// around 0, all with the configuration's `initializer_range`.
///
/// # Errors
/// [`Error::Unsupported`] for an architecture whose tensors are not known here, or a quantized configuration.
pub fn decoder_tensors(config: &ModelConfig) -> Result<Vec<TensorSpec>> {
    let spec = (models::find(config)?.spec)(config)?;
    if config.quantization_config.is_some() {
        return Err(Error::Unsupported(
            "config.json: random weights are made unquantized; remove quantization_config".to_owned(),
        ));
    }
    let c = config;
    let mut list = List { specs: Vec::new(), std: c.initializer_range };
    let [hidden, vocab] = [c.hidden_size, c.vocab_size].map(u64::from);
    list.matrix("model.embed_tokens", vocab, hidden);
    for layer in 0..c.num_hidden_layers {
        list.layer(c, &spec, &format!("model.layers.{layer}"));
    }
    list.norm("model.norm", hidden);
    if !c.tie_word_embeddings {
        list.matrix("lm_head", vocab, hidden);
    }
    Ok(list.specs)
}

struct List {
    specs: Vec<TensorSpec>,
    std: f32,
}

impl List {
    fn layer(&mut self, c: &ModelConfig, spec: &DecoderSpec, at: &str) {
        let [hidden, ffn] = [c.hidden_size, c.intermediate_size].map(u64::from);
        let head = u64::from(c.head_dim);
        let q = u64::from(c.num_attention_heads) * head;
        let kv = u64::from(c.num_key_value_heads) * head;
        self.norm(&format!("{at}.input_layernorm"), hidden);
        for (name, rows) in [("q", q), ("k", kv), ("v", kv)] {
            self.linear(&format!("{at}.self_attn.{name}_proj"), rows, hidden, spec.qkv_bias);
        }
        if spec.qk_norm {
            self.norm(&format!("{at}.self_attn.q_norm"), head);
            self.norm(&format!("{at}.self_attn.k_norm"), head);
        }
        self.linear(&format!("{at}.self_attn.o_proj"), hidden, q, spec.o_bias);
        self.norm(&format!("{at}.post_attention_layernorm"), hidden);
        self.linear(&format!("{at}.mlp.gate_proj"), ffn, hidden, spec.mlp_bias);
        self.linear(&format!("{at}.mlp.up_proj"), ffn, hidden, spec.mlp_bias);
        self.linear(&format!("{at}.mlp.down_proj"), hidden, ffn, spec.mlp_bias);
    }

    fn linear(&mut self, module: &str, rows: u64, cols: u64, bias: Bias) {
        self.matrix(module, rows, cols);
        if bias == Bias::Yes {
            self.push(format!("{module}.bias"), vec![rows], 0.0);
        }
    }

    fn matrix(&mut self, module: &str, rows: u64, cols: u64) {
        self.push(format!("{module}.weight"), vec![rows, cols], 0.0);
    }

    fn norm(&mut self, module: &str, width: u64) {
        self.push(format!("{module}.weight"), vec![width], 1.0);
    }

    fn push(&mut self, name: String, shape: Vec<u64>, mean: f32) {
        self.specs.push(TensorSpec { name, shape, mean, std: self.std });
    }
}
