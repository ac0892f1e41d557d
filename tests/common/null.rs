//! The small model that runs on the do-nothing backend.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use engine_core::DType;
use engine_core::backend::Backend;
use engine_core::backend::null::{NullBackend, NullConfig, token_at};
use engine_core::config::ModelConfig;
use engine_core::loader::source::DummySource;

/// Ids that are drawn: none of them ends a request.
pub const IDS: Range<u32> = 10..250;

/// Random weights: nobody looks at them.
pub const SOURCE: DummySource = DummySource { seed: 1, std: 0.02, dtype: DType::F32 };

/// Bytes of one KV page of 16 tokens of [`config`] in float32.
pub const PAGE_BYTES: u64 = 2 * 16 * 2 * 2 * 16 * 4;

/// A Llama of two layers with the 258 ids of the byte tokenizer and this context length.
pub fn config(max_len: u32) -> ModelConfig {
    let json = format!(
        r#"{{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 258,
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": {max_len}, "rms_norm_eps": 1e-5,
        "torch_dtype": "float32"}}"#
    );
    ModelConfig::from_json(serde_json::from_str(&json).unwrap()).unwrap()
}

/// A device that draws from [`IDS`].
pub fn backend() -> Arc<dyn Backend> {
    paced(Duration::ZERO)
}

/// The same, each of whose steps takes this time: requests that come together then run together.
pub fn paced(step_time: Duration) -> Arc<dyn Backend> {
    Arc::new(NullBackend::new(NullConfig { ids: IDS, step_time, ..NullConfig::default() }))
}

/// What a request of this seed and prompt length gets.
pub fn expected(seed: u64, prompt: usize, tokens: u32) -> Vec<u32> {
    (0..tokens).map(|i| token_at(seed, prompt as u32 + i, &IDS)).collect()
}
