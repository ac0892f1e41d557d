//! What a model's work costs at least: bytes that must be read and operations that must be done, counted from its
//! shape. Benches divide by what the machine can do; `doctor` says what fits.

use engine_core::DType;
use engine_core::Result;
use engine_core::config::ModelConfig;
use engine_core::layers::decoder::DecoderPlan;
use engine_core::loader::shapes::decoder_tensors;
use engine_core::models;

/// Bytes and operations of some work.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Read from memory once.
    pub bytes: f64,
    /// Multiplications and additions.
    pub flop: f64,
}

impl std::ops::Add for Work {
    type Output = Work;
    fn add(self, other: Work) -> Work {
        Work { bytes: self.bytes + other.bytes, flop: self.flop + other.flop }
    }
}

impl std::ops::Mul<f64> for Work {
    type Output = Work;
    fn mul(self, times: f64) -> Work {
        Work { bytes: self.bytes * times, flop: self.flop * times }
    }
}

/// One model in one number format.
#[derive(Clone, Debug)]
pub struct ModelCost {
    /// Elements of every layer's matrices and vectors, the last norm included.
    layer_elements: u64,
    /// Elements of the output head, tied or not.
    head_elements: u64,
    all_elements: u64,
    weight_bytes_each: u64,
    /// Per KV group: window, layers, bytes of one token.
    groups: Vec<(Option<u32>, u32, u64)>,
    /// Query heads times head size.
    q_width: u64,
}

impl ModelCost {
    /// Of a model whose weights are kept as `dtype` and whose cache is `kv_dtype`.
    ///
    /// # Errors
    /// `Unsupported` for an architecture that is not known here.
    pub fn new(config: &ModelConfig, dtype: DType, kv_dtype: DType) -> Result<Self> {
        let plan = DecoderPlan::new(config, (models::find(config)?.spec)(config)?);
        let tensors = decoder_tensors(config)?;
        let all_elements: u64 = tensors.iter().map(|t| t.len()).sum();
        let table = u64::from(config.vocab_size) * u64::from(config.hidden_size);
        let tables = if config.tie_word_embeddings { 1 } else { 2 };
        let specs = plan.kv_groups(kv_dtype, 1);
        let groups = plan.layout().groups.iter().zip(specs);
        Ok(ModelCost {
            layer_elements: all_elements - tables * table,
            head_elements: table,
            all_elements,
            weight_bytes_each: dtype.size_bytes() as u64,
            groups: groups.map(|((window, layers), spec)| (*window, *layers, spec.page_bytes())).collect(),
            q_width: u64::from(config.num_attention_heads) * u64::from(config.head_dim),
        })
    }

    /// All weights.
    pub fn weight_bytes(&self) -> u64 {
        self.all_elements * self.weight_bytes_each
    }

    /// What one token takes in the cache, while it is in every window.
    pub fn kv_bytes_per_token(&self) -> u64 {
        self.groups.iter().map(|(_, _, bytes)| bytes).sum()
    }

    /// One step that generates a token in each of `rows` sequences with `context` tokens each.
    pub fn decode_step(&self, rows: f64, context: f64) -> Work {
        let elements = (self.layer_elements + self.head_elements) as f64;
        let (mut cache_bytes, mut attention_flop) = (0.0, 0.0);
        for (window, layers, bytes) in &self.groups {
            let seen = context.min(window.map_or(f64::INFINITY, f64::from));
            cache_bytes += seen * *bytes as f64;
            attention_flop += 4.0 * self.q_width as f64 * seen * f64::from(*layers);
        }
        Work {
            bytes: elements * self.weight_bytes_each as f64 + rows * cache_bytes,
            flop: rows * (2.0 * elements + attention_flop),
        }
    }

    /// Prompts of `tokens` each, all in one pass over the weights: the head runs for each last token only.
    pub fn prefill(&self, rows: f64, tokens: f64) -> Work {
        let mut attention_flop = 0.0;
        for (window, layers, _) in &self.groups {
            let window = window.map_or(tokens, f64::from).min(tokens);
            // Token i sees min(i, window) tokens.
            let seen = window * (window + 1.0) / 2.0 + (tokens - window) * window;
            attention_flop += 4.0 * self.q_width as f64 * seen * f64::from(*layers);
        }
        let (layers, head) = (self.layer_elements as f64, self.head_elements as f64);
        Work {
            bytes: (layers + head) * self.weight_bytes_each as f64,
            flop: rows * (2.0 * layers * tokens + 2.0 * head + attention_flop),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn config(extra: serde_json::Value) -> ModelConfig {
        let mut config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 100,
            "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 4, "max_position_embeddings": 64,
        });
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        ModelConfig::from_json(config.as_object().unwrap().clone()).unwrap()
    }

    #[test]
    fn costs_are_those_counted_by_hand() {
        // A layer: q 8·8, k and v 4·8 each, o 8·8, gate, up, down 16·8 each, two norms of 8: 592. Last norm: 8.
        let layers = 2 * 592 + 8;
        for (tied, tables) in [(false, 1600), (true, 800)] {
            let config = config(json!({"tie_word_embeddings": tied}));
            let cost = ModelCost::new(&config, DType::Bf16, DType::F32).unwrap();
            assert_eq!(cost.weight_bytes(), 2 * (layers + tables));
            // Two layers, keys and values of 4 elements, 4 bytes each.
            assert_eq!(cost.kv_bytes_per_token(), 2 * 2 * 4 * 4);
            let step = cost.decode_step(3.0, 10.0);
            assert_eq!(step.bytes, (2 * (layers + 800) + 3 * 10 * 64) as f64);
            assert_eq!(step.flop, (3 * (2 * (layers + 800) + 4 * 8 * 10 * 2)) as f64);
            let prefill = cost.prefill(2.0, 5.0);
            assert_eq!(prefill.bytes, (2 * (layers + 800)) as f64);
            assert_eq!(prefill.flop, (2 * (2 * layers * 5 + 2 * 800 + 4 * 8 * 15 * 2)) as f64);
        }
    }

    #[test]
    fn a_window_bounds_what_is_seen() {
        let extra = json!({
            "architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 4,
        });
        let cost = ModelCost::new(&config(extra), DType::F32, DType::F32).unwrap();
        assert_eq!(cost.decode_step(1.0, 60.0), cost.decode_step(1.0, 4.0));
        // 1 + 2 + 3 + 4 + 4 tokens seen, in two layers.
        let attention = cost.prefill(1.0, 5.0).flop - 2.0 * 5.0 * (2.0 * 592.0 + 8.0) - 1600.0;
        assert_eq!(attention, 4.0 * 8.0 * 14.0 * 2.0);
    }
}
