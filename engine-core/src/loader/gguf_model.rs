//! A GGUF file as a model: its configuration as Hugging Face would write it, its tensors under Hugging Face's names.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::gguf::{GgufFile, GgufTensor};
use super::mmap::HostBytes;
use super::source::WeightSource;
use crate::backend::{HostPart, PartData};
use crate::quant::WeightFormat;
use crate::{Error, Result};

/// One or more GGUF files that hold one model.
#[derive(Debug)]
pub struct GgufModel {
    files: Vec<GgufFile>,
    arch: Arch,
}

/// An architecture of llama.cpp and the Hugging Face class that computes the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Arch {
    name: &'static str,
    class: &'static str,
    model_type: &'static str,
    /// Rows of q and k pair rotated elements side by side, where Hugging Face keeps halves.
    permuted: bool,
}

const ARCHS: [Arch; 3] = [
    Arch { name: "llama", class: "LlamaForCausalLM", model_type: "llama", permuted: true },
    Arch { name: "qwen2", class: "Qwen2ForCausalLM", model_type: "qwen2", permuted: false },
    Arch { name: "qwen3", class: "Qwen3ForCausalLM", model_type: "qwen3", permuted: false },
];

impl GgufModel {
    /// Opens `path` and, when it is one of several splits, the others beside it.
    ///
    /// # Errors
    /// Those of [`GgufFile::open`]; `Checkpoint` for a missing split; `Unsupported` for an architecture that is not
    /// known here.
    pub fn open(path: &Path) -> Result<Self> {
        let mut files = Vec::new();
        for split in splits(path, &GgufFile::open(path)?)? {
            files.push(GgufFile::open(&split)?);
        }
        let first = &files[0];
        let name = first
            .text("general.architecture")?
            .ok_or_else(|| first.wrong("general.architecture", "the name of an architecture"))?;
        let arch = ARCHS.iter().find(|a| a.name == name).copied().ok_or_else(|| {
            let known: Vec<&str> = ARCHS.iter().map(|a| a.name).collect();
            Error::Unsupported(format!(
                "{}: general.architecture is {name:?}; {} are read from GGUF",
                path.display(),
                known.join(", ")
            ))
        })?;
        Ok(GgufModel { files, arch })
    }

    /// The file with the metadata.
    pub fn metadata(&self) -> &GgufFile {
        &self.files[0]
    }

    /// Its configuration as a config.json.
    ///
    /// # Errors
    /// `Checkpoint` naming a metadata value that is missing or of the wrong kind.
    pub fn config(&self) -> Result<Map<String, Value>> {
        let f = self.metadata();
        let key = |name: &str| format!("{}.{name}", self.arch.name);
        let count = |name: &str| f.u32(&key(name))?.ok_or_else(|| f.wrong(&key(name), "a whole number"));
        if let Some(experts) = f.u32(&key("expert_count"))?.filter(|n| *n > 0) {
            let text = format!("{}: a model of {experts} experts; dense models are read", f.path().display());
            return Err(Error::Unsupported(text));
        }
        let (hidden, heads) = (count("embedding_length")?, self.heads("attention.head_count")?);
        let heads = heads.ok_or_else(|| f.wrong(&key("attention.head_count"), "a whole number"))?;
        let head_dim = f.u32(&key("attention.key_length"))?.unwrap_or(hidden / heads.max(1));
        let mut c = Map::new();
        let mut set = |key: &str, value: Value| {
            c.insert(key.to_owned(), value);
        };
        set("architectures", json!([self.arch.class]));
        set("model_type", json!(self.arch.model_type));
        set("hidden_size", json!(hidden));
        set("num_hidden_layers", json!(count("block_count")?));
        set("intermediate_size", json!(count("feed_forward_length")?));
        set("max_position_embeddings", json!(count("context_length")?));
        set("num_attention_heads", json!(heads));
        set("num_key_value_heads", json!(self.heads("attention.head_count_kv")?.unwrap_or(heads)));
        set("head_dim", json!(head_dim));
        set("vocab_size", json!(self.vocab_size()?));
        let eps = f.f64(&key("attention.layer_norm_rms_epsilon"))?;
        // As f32: the file holds 1e-5 as f32, and its decimal digits would be others.
        set("rms_norm_eps", json!(eps.unwrap_or(1e-5)));
        set("tie_word_embeddings", json!(self.tensor("output.weight").is_none()));
        set("attention_bias", json!(self.tensor("blk.0.attn_q.bias").is_some()));
        set("mlp_bias", json!(self.tensor("blk.0.ffn_gate.bias").is_some()));
        set("torch_dtype", json!("bfloat16"));
        for (name, id) in [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")] {
            if let Some(id) = f.u32(&format!("tokenizer.ggml.{id}_token_id"))? {
                set(name, json!(id));
            }
        }
        self.rope(head_dim, &mut c)?;
        Ok(c)
    }

    /// A whole number that may also be a list of equal ones, one a layer.
    fn heads(&self, name: &str) -> Result<Option<u32>> {
        let f = self.metadata();
        let key = format!("{}.{name}", self.arch.name);
        let Ok(Some(list)) = f.array(&key) else { return f.u32(&key) };
        let numbers = list.numbers().unwrap_or_default();
        match numbers.first() {
            Some(first) if numbers.iter().all(|n| n == first) => Ok(Some(*first as u32)),
            _ => Err(f.wrong(&key, "one number for all layers")),
        }
    }

    fn vocab_size(&self) -> Result<u64> {
        let table = self.tensor("token_embd.weight").map(|t| t.shape.clone());
        match table.as_deref() {
            Some([vocab, _]) => Ok(*vocab),
            _ => Err(Error::Checkpoint(format!(
                "{}: has no tensor token_embd.weight [vocabulary, hidden]",
                self.metadata().path().display()
            ))),
        }
    }

    fn rope(&self, head_dim: u32, c: &mut Map<String, Value>) -> Result<()> {
        let f = self.metadata();
        let key = |name: &str| format!("{}.rope.{name}", self.arch.name);
        c.insert("rope_theta".into(), json!(f.f64(&key("freq_base"))?.unwrap_or(10_000.0)));
        let rotated = f.u32(&key("dimension_count"))?.unwrap_or(head_dim);
        if rotated != head_dim {
            if self.arch.permuted {
                return Err(f.wrong(&key("dimension_count"), &format!("the head size {head_dim}")));
            }
            let partial = f64::from(rotated) / f64::from(head_dim);
            c.insert("partial_rotary_factor".into(), json!(partial));
        }
        if let Some(factors) = self.freq_factors()? {
            // Divisors of each frequency, with no other change: LongRoPE of one set.
            let original = c["max_position_embeddings"].clone();
            c.insert(
                "rope_scaling".into(),
                json!({"rope_type": "longrope", "short_factor": factors, "long_factor": factors,
                       "attention_factor": 1.0, "factor": 1.0, "original_max_position_embeddings": original}),
            );
            return Ok(());
        }
        let original = f.u32(&key("scaling.original_context_length"))?;
        let factor = f.f64(&key("scaling.factor"))?.or(f.f64(&key("scale_linear"))?);
        let kind = f.text(&key("scaling.type"))?.unwrap_or(if factor.is_some() { "linear" } else { "none" });
        // A GGUF file's context_length is the scaled one; Hugging Face's is multiplied by the factor again.
        let factor = factor.filter(|x| *x > 0.0).unwrap_or(1.0);
        match kind {
            "none" => {}
            "linear" => {
                let scaled = c["max_position_embeddings"].as_f64().unwrap_or(0.0);
                c.insert("max_position_embeddings".into(), json!((scaled / factor).max(1.0) as u64));
                c.insert("rope_scaling".into(), json!({"rope_type": "linear", "factor": factor}));
            }
            "yarn" => {
                let original = json!(original.map_or(c["max_position_embeddings"].clone(), |n| json!(n)));
                c.insert(
                    "rope_scaling".into(),
                    json!({"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}),
                );
            }
            _ => return Err(f.wrong(&key("scaling.type"), "one of none, linear, yarn")),
        }
        Ok(())
    }

    fn freq_factors(&self) -> Result<Option<Vec<f64>>> {
        let Some(t) = self.tensor("rope_freqs.weight") else { return Ok(None) };
        if t.format != WeightFormat::Dense(crate::DType::F32) {
            return Err(Error::Checkpoint(format!(
                "rope_freqs.weight is stored as {}; F32 is wanted",
                t.format
            )));
        }
        let number = |b: &[u8; 4]| f64::from(f32::from_le_bytes(*b));
        Ok(Some(t.bytes.as_slice().as_chunks::<4>().0.iter().map(number).collect()))
    }

    fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        self.files.iter().find_map(|f| f.tensors().get(name))
    }

    /// Heads whose rows are permuted, for q and k of the architectures that do so.
    fn permuted_heads(&self, name: &str) -> Result<Option<u32>> {
        let key = match () {
            () if !self.arch.permuted => return Ok(None),
            () if name.contains(".attn_q.") => "attention.head_count",
            () if name.contains(".attn_k.") => "attention.head_count_kv",
            () => return Ok(None),
        };
        let heads = self.heads(key)?;
        Ok(if heads.is_some() { heads } else { self.heads("attention.head_count")? })
    }
}

impl WeightSource for GgufModel {
    fn total_bytes(&self) -> u64 {
        self.files.iter().flat_map(|f| f.tensors().values()).map(|t| t.bytes.len() as u64).sum()
    }

    fn part(&self, name: &str, shape: [u64; 2]) -> Result<HostPart> {
        let path = self.metadata().path().display();
        let stored = gguf_name(name)
            .ok_or_else(|| Error::Checkpoint(format!("{path}: GGUF has no name for {name}")))?;
        let t = self
            .tensor(&stored)
            .ok_or_else(|| Error::Checkpoint(format!("{path}: has no tensor {stored} (for {name})")))?;
        let matches = match t.shape.as_slice() {
            [k] => shape == [1, *k],
            [n, k] => shape == [*n, *k],
            _ => false,
        };
        if !matches {
            return Err(Error::Checkpoint(format!(
                "{path}: tensor {stored} has shape {:?}; its metadata makes it {shape:?}",
                t.shape
            )));
        }
        let rows = if t.shape.len() == 1 { shape[1] } else { shape[0] };
        let bytes = match self.permuted_heads(&stored)? {
            Some(heads) => unpermuted(&t.bytes, rows as usize, heads as usize).ok_or_else(|| {
                Error::Checkpoint(format!("{path}: {stored} has {rows} rows for {heads} heads"))
            })?,
            None => t.bytes.clone(),
        };
        Ok(HostPart { name: stored, data: PartData::Mapped(bytes), format: t.format, shape, aux: Vec::new() })
    }
}

/// Rows in Hugging Face's order: row i of the first half of a head stands at 2i in the file, of the second half at
/// 2i + 1.
fn unpermuted(bytes: &HostBytes, rows: usize, heads: usize) -> Option<HostBytes> {
    let dim = rows.checked_div(heads)?;
    if heads * dim != rows || dim % 2 != 0 || rows == 0 {
        return None;
    }
    let row_bytes = bytes.len() / rows;
    let mut out = Vec::with_capacity(bytes.len());
    for row in 0..rows {
        let (head, i) = (row / dim, row % dim);
        let from = head * dim + i % (dim / 2) * 2 + i / (dim / 2);
        out.extend_from_slice(&bytes.as_slice()[from * row_bytes..][..row_bytes]);
    }
    Some(out.into())
}

/// The name in GGUF of a tensor of Hugging Face's.
fn gguf_name(name: &str) -> Option<String> {
    match name {
        "model.embed_tokens.weight" => return Some("token_embd.weight".to_owned()),
        "model.norm.weight" => return Some("output_norm.weight".to_owned()),
        "lm_head.weight" => return Some("output.weight".to_owned()),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (module, end) = rest.rsplit_once('.')?;
    let module = match module {
        "input_layernorm" => "attn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "post_attention_layernorm" => "ffn_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        _ => return None,
    };
    Some(format!("blk.{layer}.{module}.{end}"))
}

/// All files of a model: `x-00001-of-00003.gguf` and its siblings, or the file alone.
fn splits(path: &Path, first: &GgufFile) -> Result<Vec<PathBuf>> {
    let count = first.u32("split.count")?.unwrap_or(1);
    if count <= 1 {
        return Ok(vec![path.to_owned()]);
    }
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let stem =
        name.strip_suffix(&format!("-of-{count:05}.gguf")).and_then(|s| s.get(..s.len().checked_sub(6)?));
    let Some(stem) = stem.filter(|_| count <= 9999) else {
        return Err(Error::Checkpoint(format!(
            "{}: is one of {count} splits; its name should end in -00001-of-{count:05}.gguf",
            path.display()
        )));
    };
    let sibling = |i: u32| path.with_file_name(format!("{stem}-{i:05}-of-{count:05}.gguf"));
    let all: Vec<PathBuf> = (1..=count).map(sibling).collect();
    match all.iter().find(|p| !p.is_file()) {
        None => Ok(all),
        Some(missing) => Err(Error::Checkpoint(format!(
            "{}: is one of {count} splits; {} is not there",
            path.display(),
            missing.display()
        ))),
    }
}
