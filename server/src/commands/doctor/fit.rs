//! What a model would take on a device: weights, cache, how long and how many requests.

use engine_core::DType;
use engine_core::backend::{DeviceInfo, MemInfo};
use engine_core::config::ModelConfig;
use serde_json::{Value, json};

use crate::bench::cost::ModelCost;
use crate::cli::startup::{grouped, human_size};
use crate::cli::{DoctorArgs, EngineArgs, LoadFormat, MaxModelLen};
use crate::model::{OpenModel, StartError, TemplateOptions};

/// A model to look at.
pub struct Subject {
    name: String,
    config: ModelConfig,
}

/// Widely used shapes: name, layers, hidden, intermediate, query heads, KV heads, head size, vocabulary, context, tied.
type Shape = (&'static str, u32, u32, u32, u32, u32, u32, u32, u32, bool);
const SHAPES: [Shape; 4] = [
    ("Llama 3.2 1B", 16, 2048, 8192, 32, 8, 64, 128_256, 131_072, true),
    ("Llama 3.1 8B", 32, 4096, 14_336, 32, 8, 128, 128_256, 131_072, false),
    ("Mistral Small 24B", 40, 5120, 32_768, 32, 8, 128, 131_072, 32_768, false),
    ("Llama 3.3 70B", 80, 8192, 28_672, 64, 8, 128, 128_256, 131_072, false),
];

impl Subject {
    /// MODEL, or the bundled model and a few widely used shapes.
    ///
    /// # Errors
    /// A MODEL that cannot be found or read.
    pub fn of(args: &DoctorArgs) -> Result<Vec<Subject>, StartError> {
        // Its weights are not looked at, and not downloaded.
        let engine = EngineArgs { load_format: LoadFormat::Dummy, ..args.engine.clone() };
        let model = OpenModel::open(&engine, TemplateOptions::default(), args.logging.format)?;
        let mut subjects = vec![Subject { name: model.names[0].clone(), config: model.config }];
        if engine.model.is_none() {
            for shape in SHAPES {
                subjects.push(Subject { name: shape.0.to_owned(), config: config(shape)? });
            }
        }
        Ok(subjects)
    }
}

fn config(shape: Shape) -> Result<ModelConfig, StartError> {
    let (_, layers, hidden, intermediate, q_heads, kv_heads, head_dim, vocab, context, tied) = shape;
    let json = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": q_heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "tie_word_embeddings": tied,
    });
    let Value::Object(map) = json else { return Err(StartError::new("a shape is no object")) };
    Ok(ModelConfig::from_json(map)?)
}

/// One model on one device.
#[derive(Debug)]
pub struct Fit {
    name: String,
    found: Result<Figures, String>,
}

#[derive(Clone, Debug, PartialEq)]
struct Figures {
    dtype: &'static str,
    weight_bytes: u64,
    kv_bytes_per_token: u64,
    /// For the cache, once the weights are loaded; `None`: the weights do not fit.
    kv_bytes: Option<u64>,
    max_model_len: u32,
    missing_bytes: u64,
}

impl Fit {
    /// As the engine would decide with these flags: half of what the weights leave is the cache, unless a flag
    /// says otherwise. Workspaces, a few MB, are left out.
    pub fn new(subject: &Subject, args: &EngineArgs, info: &DeviceInfo, memory: MemInfo) -> Self {
        Fit { name: subject.name.clone(), found: figures(&subject.config, args, info, memory) }
    }

    /// For programs.
    pub fn json(&self) -> Value {
        match &self.found {
            Ok(f) => json!({
                "model": self.name,
                "dtype": f.dtype,
                "weight_bytes": f.weight_bytes,
                "kv_bytes_per_token": f.kv_bytes_per_token,
                "kv_bytes": f.kv_bytes,
                "max_model_len": f.max_model_len,
                "longest_context": f.longest_context(),
                "full_length_requests": f.full_length_requests(),
                "missing_bytes": f.missing_bytes,
            }),
            Err(reason) => json!({"model": self.name, "reason": reason}),
        }
    }

    fn cells(&self) -> [String; 6] {
        let cells = |f: &Figures| {
            let (context, requests) = match f.kv_bytes {
                None => (format!("{} missing", human_size(f.missing_bytes)), "none".to_owned()),
                Some(_) => (
                    format!("{} of {}", grouped(f.longest_context()), grouped(u64::from(f.max_model_len))),
                    format!("{:.1}", f.full_length_requests()),
                ),
            };
            let kv = human_size(f.kv_bytes_per_token);
            [self.name.clone(), f.dtype.to_owned(), human_size(f.weight_bytes), kv, context, requests]
        };
        match &self.found {
            Ok(f) => cells(f),
            Err(reason) => [self.name.as_str(), "", "", "", reason, ""].map(str::to_owned),
        }
    }
}

fn figures(
    config: &ModelConfig,
    args: &EngineArgs,
    info: &DeviceInfo,
    memory: MemInfo,
) -> Result<Figures, String> {
    let own = config.dtype.filter(|d| info.dtypes.contains(d));
    let dtype = args.dtype.or(own).or(info.dtypes.first().copied()).unwrap_or(DType::F32);
    let cost =
        ModelCost::new(config, dtype, args.kv_cache_dtype.unwrap_or(dtype)).map_err(|e| e.to_string())?;
    let asked = match args.max_model_len {
        Some(MaxModelLen::Tokens(n)) => Some(n),
        _ => None,
    };
    let max_model_len = config.max_model_len(asked).map_err(|e| e.to_string())?;
    let weight_bytes = cost.weight_bytes();
    let left = memory.free_bytes.checked_sub(weight_bytes);
    let missing_bytes = weight_bytes.saturating_sub(memory.free_bytes);
    Ok(Figures {
        dtype: dtype.name(),
        weight_bytes,
        kv_bytes_per_token: cost.kv_bytes_per_token(),
        kv_bytes: left.map(|left| args.kv_cache_memory_bytes.unwrap_or(left / 2)),
        max_model_len,
        missing_bytes,
    })
}

impl Figures {
    fn kv_tokens(&self) -> u64 {
        self.kv_bytes.unwrap_or(0) / self.kv_bytes_per_token.max(1)
    }

    fn longest_context(&self) -> u64 {
        self.kv_tokens().min(u64::from(self.max_model_len))
    }

    fn full_length_requests(&self) -> f64 {
        self.kv_tokens() as f64 / f64::from(self.max_model_len.max(1))
    }
}

/// The models under each other.
pub fn table(fits: &[Fit]) -> String {
    let heading = ["model", "dtype", "weights", "KV a token", "longest context", "full-length requests"];
    let rows: Vec<[String; 6]> =
        std::iter::once(heading.map(str::to_owned)).chain(fits.iter().map(Fit::cells)).collect();
    let widths: [usize; 6] =
        std::array::from_fn(|i| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(&format!("  {}\n", cells.join("  ").trim_end()));
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use engine_core::backend::Backend as _;
    use engine_core::backend::null::NullBackend;

    fn fit(shape: Shape, args: &EngineArgs, free_bytes: u64) -> Figures {
        let subject = Subject { name: shape.0.to_owned(), config: config(shape).unwrap() };
        let memory = MemInfo { total_bytes: 1 << 40, free_bytes };
        Fit::new(&subject, args, NullBackend::default().info(), memory).found.unwrap()
    }

    #[test]
    fn sizes_are_those_of_the_published_models() {
        // 1,235,814,400 and 8,030,261,248 parameters on the models' cards; 70,553,706,496 for the last.
        let gib = 1 << 30;
        let sizes = SHAPES.map(|s| fit(s, &EngineArgs::default(), 500 * gib).weight_bytes / 2);
        assert_eq!([sizes[0], sizes[1], sizes[3]], [1_235_814_400, 8_030_261_248, 70_553_706_496]);
        let f = fit(SHAPES[1], &EngineArgs::default(), 500 * gib);
        assert_eq!((f.dtype, f.kv_bytes_per_token), ("bfloat16", 128 << 10));
    }

    #[test]
    fn memory_decides_what_fits() {
        let shape = SHAPES[0];
        let weights = 2 * 1_235_814_400u64;
        let small = fit(shape, &EngineArgs::default(), weights - 5);
        assert_eq!((small.kv_bytes, small.missing_bytes, small.longest_context()), (None, 5, 0));
        let (kv, tokens) = (32u64 << 10, 1000);
        let half = fit(shape, &EngineArgs::default(), weights + 2 * kv * tokens);
        assert_eq!((half.longest_context(), half.missing_bytes), (tokens, 0));
        let flags = EngineArgs {
            kv_cache_memory_bytes: Some(kv * 500),
            max_model_len: Some(MaxModelLen::Tokens(200)),
            ..EngineArgs::default()
        };
        let told = fit(shape, &flags, weights + 1);
        assert_eq!(told.longest_context(), 200);
        assert!((told.full_length_requests() - 2.5).abs() < 1e-9);
    }
}
