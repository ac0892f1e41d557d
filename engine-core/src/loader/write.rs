//! Writing a checkpoint of random weights as real files: safetensors in shards with an index, as Hugging Face lays
//! them out. Values are made in chunks by several threads and written where they belong, so that memory stays at a
//! few megabytes a thread whatever the model's size.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Map, Value, json};

use super::fill::Fill;
use super::shapes::{TensorSpec, decoder_tensors};
use super::{FileDType, shape_bytes};
use crate::config::ModelConfig;
use crate::{DType, Error, Result};

/// Size at which Hugging Face starts another file.
pub const SHARD_BYTES: u64 = 5_000_000_000;

/// How a checkpoint is written.
#[derive(Clone, Copy, Debug)]
pub struct WriteOptions {
    /// f32, f16 or bf16.
    pub dtype: DType,
    pub seed: u64,
    /// Largest file, unless one tensor alone is larger.
    pub shard_bytes: u64,
    pub threads: usize,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Weight files, without the index.
    pub files: Vec<PathBuf>,
    /// Bytes of all tensors.
    pub total_bytes: u64,
}

/// Called from several threads with the number of tensor bytes just written.
pub type OnBytes<'a> = &'a (dyn Fn(u64) + Sync);

/// Writes random weights of `config_json`'s shape into `dir` (made if missing), and then the configuration itself
/// with `options.dtype` in it, so that an interrupted run leaves no directory that looks whole.
///
/// # Errors
/// [`Error::Config`] when the configuration is wrong or `dir` already has one, [`Error::Unsupported`] for an unknown
/// architecture, otherwise as [`write_tensors`].
pub fn make_checkpoint(
    config_json: &Map<String, Value>,
    dir: &Path,
    options: &WriteOptions,
    on_bytes: OnBytes<'_>,
) -> Result<Written> {
    let tensors = decoder_tensors(&ModelConfig::from_json(config_json.clone())?)?;
    std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
    let path = dir.join("config.json");
    if path.exists() {
        return Err(Error::Config(format!(
            "{}: is there already; an empty directory is wanted",
            path.display()
        )));
    }
    let written = write_tensors(dir, &tensors, options, on_bytes)?;
    let mut config = config_json.clone();
    config.remove("dtype");
    config.insert("torch_dtype".to_owned(), Value::from(options.dtype.name()));
    write_json(&path, &Value::Object(config))?;
    Ok(written)
}

/// Writes `tensors` in their order: `model.safetensors`, or shards with `model.safetensors.index.json`.
///
/// # Errors
/// [`Error::Config`] for a dtype weights are not made in; [`Error::Io`] naming the file when the disk refuses; no
/// partial file is left then.
pub fn write_tensors(
    dir: &Path,
    tensors: &[TensorSpec],
    options: &WriteOptions,
    on_bytes: OnBytes<'_>,
) -> Result<Written> {
    if !matches!(options.dtype, DType::F32 | DType::F16 | DType::Bf16) {
        let wanted = "one of float32, float16, bfloat16 is wanted";
        return Err(Error::Config(format!("random weights of {}; {wanted}", options.dtype)));
    }
    let shards = split(tensors, options)?;
    let total_bytes = shards.iter().flat_map(|s| &s.ranges).map(|r| r[1] - r[0]).sum();
    let (mut files, mut weight_map) = (Vec::new(), BTreeMap::new());
    for (i, shard) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => "model.safetensors".to_owned(),
            n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
        };
        weight_map.extend(shard.tensors.iter().map(|t| (t.name.clone(), name.clone())));
        let path = dir.join(name);
        shard.write(&path, options, on_bytes)?;
        files.push(path);
    }
    if files.len() > 1 {
        let index = json!({"metadata": {"total_size": total_bytes}, "weight_map": weight_map});
        write_json(&dir.join("model.safetensors.index.json"), &index)?;
    }
    Ok(Written { files, total_bytes })
}

/// Bytes made at a time by one thread.
const CHUNK_BYTES: usize = 4 << 20;

/// The tensors of one file, and the bytes of its data that each takes.
struct Shard<'a> {
    tensors: &'a [TensorSpec],
    ranges: Vec<[u64; 2]>,
}

fn split<'a>(tensors: &'a [TensorSpec], options: &WriteOptions) -> Result<Vec<Shard<'a>>> {
    let mut shards = Vec::new();
    let (mut first, mut ranges, mut at) = (0, Vec::new(), 0u64);
    for (i, tensor) in tensors.iter().enumerate() {
        let bytes = shape_bytes(&tensor.shape, options.dtype.into());
        let end = bytes.and_then(|n| at.checked_add(n)).ok_or_else(|| {
            Error::Config(format!("tensor {} of shape {:?} is too large", tensor.name, tensor.shape))
        })?;
        if end > options.shard_bytes && i > first {
            shards.push(Shard { tensors: &tensors[first..i], ranges: std::mem::take(&mut ranges) });
            ranges.push([0, end - at]);
            (first, at) = (i, end - at);
        } else {
            ranges.push([at, end]);
            at = end;
        }
    }
    shards.push(Shard { tensors: &tensors[first..], ranges });
    Ok(shards)
}

impl Shard<'_> {
    /// Writes under another name and renames at the end.
    fn write(&self, path: &Path, options: &WriteOptions, on_bytes: OnBytes<'_>) -> Result<()> {
        let partial = path.with_extension("partial");
        let written = self
            .write_to(&partial, options, on_bytes)
            .and_then(|()| std::fs::rename(&partial, path))
            .map_err(|e| Error::io(path, e));
        if written.is_err() {
            let _ = std::fs::remove_file(&partial);
        }
        written
    }

    fn write_to(&self, path: &Path, options: &WriteOptions, on_bytes: OnBytes<'_>) -> std::io::Result<()> {
        let header = self.header(options.dtype);
        let file = Target::create(path)?;
        file.set_len(header.len() as u64 + self.ranges.last().map_or(0, |r| r[1]))?;
        file.write_at(&header, 0)?;
        let chunks = self.chunks(options.dtype.size_bytes() as u64);
        let (next, failure, stop) = (AtomicUsize::new(0), Mutex::new(None), AtomicBool::new(false));
        let work = || {
            let mut buffer = vec![0; CHUNK_BYTES];
            while let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed))
                && !stop.load(Ordering::Relaxed)
            {
                let spec = &self.tensors[chunk.tensor];
                let fill = Fill::new(options.seed, &spec.name, spec.mean, spec.std);
                let bytes = &mut buffer[..chunk.bytes];
                fill.write(chunk.start, options.dtype, bytes);
                match file.write_at(bytes, header.len() as u64 + chunk.at) {
                    Ok(()) => on_bytes(chunk.bytes as u64),
                    Err(e) => {
                        stop.store(true, Ordering::Relaxed);
                        *failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(e);
                    }
                }
            }
        };
        std::thread::scope(|scope| (0..options.threads.max(1)).for_each(|_| drop(scope.spawn(work))));
        match failure.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
            Some(e) => Err(e),
            None => Ok(()),
        }
    }

    /// Length and JSON, padded with spaces so that the data starts at a multiple of 64.
    fn header(&self, dtype: DType) -> Vec<u8> {
        let mut entries = Map::new();
        entries.insert("__metadata__".to_owned(), json!({"format": "pt"}));
        for (tensor, range) in self.tensors.iter().zip(&self.ranges) {
            let name = FileDType::from(dtype).name();
            entries.insert(
                tensor.name.clone(),
                json!({"dtype": name, "shape": tensor.shape, "data_offsets": range}),
            );
        }
        let mut json = Value::Object(entries).to_string().into_bytes();
        json.resize((json.len() + 8).next_multiple_of(64) - 8, b' ');
        let mut header = (json.len() as u64).to_le_bytes().to_vec();
        header.extend(json);
        header
    }

    fn chunks(&self, element_bytes: u64) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        for (tensor, [from, to]) in self.ranges.iter().enumerate() {
            for at in (*from..*to).step_by(CHUNK_BYTES) {
                let bytes = (to - at).min(CHUNK_BYTES as u64) as usize;
                chunks.push(Chunk { tensor, start: (at - from) / element_bytes, at, bytes });
            }
        }
        chunks
    }
}

/// A piece of one tensor.
struct Chunk {
    tensor: usize,
    /// Index of its first element in the tensor.
    start: u64,
    /// First byte, relative to the start of the data.
    at: u64,
    bytes: usize,
}

/// A file that threads write to at positions of their own.
struct Target {
    #[cfg(unix)]
    file: File,
    #[cfg(not(unix))]
    file: Mutex<File>,
}

impl Target {
    fn create(path: &Path) -> std::io::Result<Self> {
        let file = File::create(path)?;
        #[cfg(not(unix))]
        let file = Mutex::new(file);
        Ok(Target { file })
    }

    #[cfg(unix)]
    fn set_len(&self, bytes: u64) -> std::io::Result<()> {
        self.file.set_len(bytes)
    }

    #[cfg(unix)]
    fn write_at(&self, bytes: &[u8], at: u64) -> std::io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(&self.file, bytes, at)
    }

    #[cfg(not(unix))]
    fn set_len(&self, bytes: u64) -> std::io::Result<()> {
        self.file.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).set_len(bytes)
    }

    #[cfg(not(unix))]
    fn write_at(&self, bytes: &[u8], at: u64) -> std::io::Result<()> {
        use std::io::{Seek, SeekFrom, Write};
        let mut file = self.file.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        file.seek(SeekFrom::Start(at))?;
        file.write_all(bytes)
    }
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = format!("{value:#}\n");
    std::fs::write(path, text).map_err(|e| Error::io(path, e))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::loader::testing::TempDir;
    use crate::loader::{Checkpoint, LoadFormat};

    fn config(extra: Value) -> Map<String, Value> {
        let mut base = json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 50,
            "hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "dtype": "float32", "tie_word_embeddings": false});
        base.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        base.as_object().unwrap().clone()
    }

    fn options(dtype: DType, shard_bytes: u64) -> WriteOptions {
        WriteOptions { dtype, seed: 3, shard_bytes, threads: 3 }
    }

    #[test]
    fn what_is_written_reads_back_as_the_dummy_of_the_same_seed() {
        for (dtype, shard_bytes) in
            [(DType::Bf16, SHARD_BYTES), (DType::F16, 2000), (DType::F32, 5000), (DType::Bf16, 1)]
        {
            let dir = TempDir::new("write");
            let seen = AtomicU64::new(0);
            let count = |n| {
                seen.fetch_add(n, Ordering::Relaxed);
            };
            let written =
                make_checkpoint(&config(json!({})), dir.path(), &options(dtype, shard_bytes), &count)
                    .unwrap();
            assert_eq!(seen.into_inner(), written.total_bytes);
            let c = Checkpoint::open(dir.path(), LoadFormat::Safetensors).unwrap();
            assert_eq!((c.total_bytes(), c.file_count()), (written.total_bytes, written.files.len()));
            assert_eq!(written.files.len() > 1, shard_bytes < 10_000);
            let read = ModelConfig::from_dir(dir.path(), None).unwrap();
            assert_eq!(read.dtype, Some(dtype));
            let mut want = decoder_tensors(&read).unwrap();
            want.sort_by(|a, b| a.name.cmp(&b.name));
            assert_eq!(c.names().collect::<Vec<_>>(), want.iter().map(|t| &t.name).collect::<Vec<_>>());
            for spec in want {
                let tensor = c.tensor(&spec.name).unwrap();
                let mut made = vec![0; tensor.bytes.len()];
                Fill::new(3, &spec.name, spec.mean, spec.std).write(0, dtype, &mut made);
                assert_eq!((tensor.dtype, &tensor.shape), (dtype.into(), &spec.shape), "{}", spec.name);
                assert!(*tensor.bytes == made, "{}", spec.name);
            }
            let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
            assert_eq!(left.len(), written.files.len() + 1 + usize::from(written.files.len() > 1));
        }
    }

    #[test]
    fn a_tensor_of_many_chunks_is_seamless() {
        let dir = TempDir::new("chunks");
        let spec = TensorSpec { name: "w".into(), shape: vec![3, 1_000_003], mean: 0.0, std: 1.0 };
        let options = options(DType::F32, SHARD_BYTES);
        write_tensors(dir.path(), std::slice::from_ref(&spec), &options, &|_| ()).unwrap();
        let tensor = Checkpoint::open(dir.path(), LoadFormat::Auto).unwrap().tensor("w").unwrap();
        let mut want = vec![0; tensor.bytes.len()];
        Fill::new(3, "w", 0.0, 1.0).write(0, DType::F32, &mut want);
        assert!(*tensor.bytes == *want);
    }

    #[test]
    fn wrong_orders_are_refused() {
        let dir = TempDir::new("write-refused");
        let make = |extra, dtype| {
            make_checkpoint(&config(extra), dir.path(), &options(dtype, SHARD_BYTES), &|_| ())
                .unwrap_err()
                .to_string()
        };
        assert!(make(json!({}), DType::I8).contains("random weights of int8; one of float32"));
        assert!(make(json!({"hidden_size": 0}), DType::F32).contains("hidden_size is 0"));
        assert!(make(json!({"architectures": ["Odd"]}), DType::F32).contains("known architectures are"));
        let quantized = json!({"quantization_config": {"quant_method": "awq"}});
        assert!(make(quantized, DType::F32).contains("remove quantization_config"));
        dir.write("config.json", b"{}");
        assert!(make(json!({}), DType::F32).contains("is there already"));
        let file = dir.write("plain", b"");
        let into_file = make_checkpoint(&config(json!({})), &file, &options(DType::F32, 1), &|_| ());
        assert!(into_file.unwrap_err().to_string().contains("plain"));
    }
}
