//! From checkpoint names to loaded weights: what a model's constructor calls.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use super::checkpoint::Checkpoint;
use super::fill::Fill;
use super::mmap::HostBytes;
use crate::backend::{Backend, Fuse, HostPart, HostWeight, PartData, Shard, Uses, Weight};
use crate::error::{Error, Result};
use crate::layers::decoder::Bias;
use crate::quant::WeightFormat;
use crate::tensor::DType;

/// Where the tensors of a checkpoint come from.
pub trait WeightSource: Sync {
    /// One tensor as host data; `shape` is what the model expects ([N, K], or [1, K] for vectors).
    ///
    /// # Errors
    /// When it is missing, of another shape or of a type no model reads, by name.
    fn part(&self, name: &str, shape: [u64; 2]) -> Result<HostPart>;

    /// Bytes of all tensors together, for a progress bar; 0 when not known.
    fn total_bytes(&self) -> u64;

    /// Whether every weight is plain numbers, so that its bytes on a device follow from its shape.
    fn is_plain(&self) -> bool {
        false
    }
}

impl<T: WeightSource + Send + ?Sized> WeightSource for std::sync::Arc<T> {
    fn part(&self, name: &str, shape: [u64; 2]) -> Result<HostPart> {
        (**self).part(name, shape)
    }

    fn total_bytes(&self) -> u64 {
        (**self).total_bytes()
    }

    fn is_plain(&self) -> bool {
        (**self).is_plain()
    }
}

impl WeightSource for Checkpoint {
    fn total_bytes(&self) -> u64 {
        Checkpoint::total_bytes(self)
    }

    fn is_plain(&self) -> bool {
        true
    }

    fn part(&self, name: &str, shape: [u64; 2]) -> Result<HostPart> {
        let t = self.tensor(name)?;
        let matches = match t.shape.as_slice() {
            [k] => shape == [1, *k],
            [n, k] => shape == [*n, *k],
            _ => false,
        };
        if !matches {
            let want = if shape[0] == 1 { format!("[{}]", shape[1]) } else { format!("{shape:?}") };
            return Err(Error::Checkpoint(format!(
                "{}: tensor {name} has shape {:?}; config.json makes it {want}",
                self.file_of(name).display(),
                t.shape
            )));
        }
        let Some(dtype) = t.dtype.device().filter(|d| d.is_float()) else {
            return Err(Error::Checkpoint(format!(
                "{}: tensor {name} is stored as {}; float32, float16 or bfloat16 is wanted",
                self.file_of(name).display(),
                t.dtype.name()
            )));
        };
        Ok(HostPart {
            name: name.to_owned(),
            data: PartData::Mapped(t.bytes),
            format: WeightFormat::Dense(dtype),
            shape,
            aux: Vec::new(),
        })
    }
}

/// Random weights of any shape (`--load-format dummy`): matrices normal, norm weights around 1.
#[derive(Clone, Copy, Debug)]
pub struct DummySource {
    pub seed: u64,
    /// Standard deviation of matrices and biases.
    pub std: f32,
    pub dtype: DType,
}

impl WeightSource for DummySource {
    fn total_bytes(&self) -> u64 {
        0
    }

    fn is_plain(&self) -> bool {
        true
    }

    fn part(&self, name: &str, shape: [u64; 2]) -> Result<HostPart> {
        let mean = if name.ends_with("norm.weight") { 1.0 } else { 0.0 };
        let fill = Fill::new(self.seed, name, mean, self.std);
        Ok(HostPart {
            name: name.to_owned(),
            data: PartData::Fill(fill),
            format: WeightFormat::Dense(self.dtype),
            shape,
            aux: Vec::new(),
        })
    }
}

/// Loads a model's weights onto one backend.
pub struct WeightLoader<'a> {
    pub backend: &'a dyn Backend,
    pub source: &'a dyn WeightSource,
    /// Type of activations.
    pub act_dtype: DType,
    /// Loader threads; at least 1.
    pub threads: u32,
    /// Told after each weight: bytes it takes on the device.
    pub progress: &'a (dyn Fn(u64) + Sync),
}

impl WeightLoader<'_> {
    /// A matrix of `parts`, each [rows, k], fused.
    ///
    /// # Errors
    /// From the source or the device.
    pub fn matrix(&self, parts: &[&str], rows: &[u32], k: u32, fuse: Fuse, uses: Uses) -> Result<Weight> {
        let part = |(name, n): (&&str, &u32)| self.source.part(name, [u64::from(*n), u64::from(k)]);
        self.load(parts[0], parts.iter().zip(rows).map(part).collect::<Result<_>>()?, fuse, uses)
    }

    /// A vector [k].
    ///
    /// # Errors
    /// From the source or the device.
    pub fn vector(&self, name: &str, k: u32) -> Result<Weight> {
        self.load(name, vec![self.source.part(name, [1, u64::from(k)])?], Fuse::One, Uses::Vector)
    }

    /// The bias of a fused linear, if there is one.
    ///
    /// # Errors
    /// From the source or the device.
    pub fn bias(&self, bias: Bias, parts: &[&str], sizes: &[u32], fuse: Fuse) -> Result<Option<Weight>> {
        if bias == Bias::No {
            return Ok(None);
        }
        let part = |(name, n): (&&str, &u32)| self.source.part(name, [1, u64::from(*n)]);
        let parts: Vec<HostPart> = parts.iter().zip(sizes).map(part).collect::<Result<_>>()?;
        let name = parts[0].name.clone();
        self.load(&name, parts, fuse, Uses::Vector).map(Some)
    }

    /// A table of computed values [values / cols, cols] f32.
    ///
    /// # Errors
    /// From the device.
    pub fn table(&self, name: &str, values: &[f32], cols: u32) -> Result<Weight> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let part = HostPart {
            name: name.to_owned(),
            data: PartData::Mapped(HostBytes::from(bytes)),
            format: WeightFormat::Dense(DType::F32),
            shape: [values.len() as u64 / u64::from(cols), u64::from(cols)],
            aux: Vec::new(),
        };
        self.load(name, vec![part], Fuse::One, Uses::Vector)
    }

    fn load(&self, name: &str, parts: Vec<HostPart>, fuse: Fuse, uses: Uses) -> Result<Weight> {
        let weight = self.backend.load_weight(HostWeight {
            name: name.to_owned(),
            parts,
            fuse,
            uses,
            shard: Shard::Whole,
            act_dtype: self.act_dtype,
        })?;
        (self.progress)(weight.meta().bytes);
        Ok(weight)
    }

    /// `make(0..count)` on the loader threads, results in order; the first error wins.
    ///
    /// # Errors
    /// What `make` returns.
    pub fn parallel<T: Send>(&self, count: u32, make: impl Fn(u32) -> Result<T> + Sync) -> Result<Vec<T>> {
        let next = AtomicU32::new(0);
        let done: Mutex<Vec<(u32, Result<T>)>> = Mutex::new(Vec::with_capacity(count as usize));
        std::thread::scope(|scope| {
            for _ in 0..self.threads.clamp(1, count.max(1)) {
                scope.spawn(|| {
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        if i >= count {
                            return;
                        }
                        let made = make(i);
                        if made.is_err() {
                            next.store(count, Ordering::Relaxed);
                        }
                        done.lock().unwrap_or_else(|e| e.into_inner()).push((i, made));
                    }
                });
            }
        });
        let mut done = done.into_inner().unwrap_or_else(|e| e.into_inner());
        done.sort_by_key(|d| d.0);
        done.into_iter().map(|d| d.1).collect()
    }
}
