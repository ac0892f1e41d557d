//! Torch checkpoints (`pytorch_model.bin`, `.pt`): a pickled dictionary of tensors over storages in the same file.
//!
//! The zip form and the older one are read. The pickle is data to [`super::pickle`], never code. Contiguous
//! tensors are ranges of the mapped file; strided ones are copied when asked for, never to more than the file's
//! size.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::pickle::{Heap, Reason, TensorRef, Value};
use super::torch_zip::Contents;
use super::{FileDType, HostBytes, HostTensor, shape_bytes, torch_legacy, torch_zip};
use crate::{Error, Result};

/// Keys under which training scripts put the model's state beside other things.
const STATE_KEYS: [&str; 4] = ["state_dict", "model_state_dict", "model", "module"];

/// A strided tensor may copy to this much more than its file's size.
const SLACK_BYTES: u64 = 1 << 20;

/// One open torch file.
#[derive(Debug)]
pub struct TorchFile {
    path: PathBuf,
    bytes: HostBytes,
    tensors: BTreeMap<String, View>,
}

/// A tensor over its storage's bytes, checked to lie inside them.
#[derive(Debug)]
struct View {
    dtype: FileDType,
    shape: Vec<u64>,
    /// In bytes.
    strides: Vec<u64>,
    /// First byte in the file.
    at: usize,
    /// Bytes of all elements.
    len: usize,
}

impl TorchFile {
    /// Maps `path` and reads its table of tensors.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, [`Error::Checkpoint`] naming the file, and the tensor or the refused
    /// global, when it is damaged or more than tensors.
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_bytes(path, HostBytes::map_file(path)?)
    }

    /// The same, of bytes already in hand; `path` is used in messages only.
    ///
    /// # Errors
    /// As [`TorchFile::open`].
    pub fn from_bytes(path: &Path, bytes: HostBytes) -> Result<Self> {
        let tensors = read(&bytes)
            .and_then(|contents| views(&contents, bytes.len()))
            .map_err(|reason| Error::Checkpoint(format!("{}: {reason}", path.display())))?;
        Ok(TorchFile { path: path.to_owned(), bytes, tensors })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of its tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Element type and shape of a tensor.
    pub fn info(&self, name: &str) -> Option<(FileDType, &[u64])> {
        self.tensors.get(name).map(|v| (v.dtype, &*v.shape))
    }

    /// One tensor: a range of the file, or a copy where its elements do not follow each other.
    ///
    /// # Errors
    /// None today: everything is checked when the file is opened.
    pub fn tensor(&self, name: &str) -> Result<Option<HostTensor>> {
        let Some(view) = self.tensors.get(name) else { return Ok(None) };
        let bytes = match view.is_contiguous() {
            true => self.bytes.slice(view.at..view.at + view.len),
            false => HostBytes::from(view.gather(&self.bytes)),
        };
        Ok(Some(HostTensor { bytes, dtype: view.dtype, shape: view.shape.clone() }))
    }

    /// The whole file, for advice to the kernel.
    pub fn data(&self) -> HostBytes {
        self.bytes.clone()
    }
}

fn read(file: &[u8]) -> Reason<Contents> {
    if torch_zip::is_zip(file) {
        return torch_zip::read(file);
    }
    if file.first() != Some(&0x80) {
        let start = &file[..file.len().min(8)];
        return Err(format!("starts with {start:02x?}; a torch file starts as a zip or a pickle does"));
    }
    torch_legacy::read(file)
}

/// The tensors of the state dictionary by name.
fn views(contents: &Contents, file_bytes: usize) -> Reason<BTreeMap<String, View>> {
    let heap = &contents.heap;
    let mut tensors = BTreeMap::new();
    for (key, value) in state(heap, contents.root)? {
        if let (Some(name), Some(tensor)) = (heap.text(*key), heap.tensor(*value)) {
            let view = View::new(tensor, contents, file_bytes).map_err(|e| format!("tensor {name}: {e}"))?;
            tensors.insert(name.to_owned(), view);
        }
    }
    Ok(tensors)
}

/// The dictionary that holds the tensors: the top one, or one of [`STATE_KEYS`] in it.
fn state(heap: &Heap, root: Value) -> Reason<&[(Value, Value)]> {
    let holds_tensors =
        |v: Value| heap.dict(v).is_some_and(|d| d.iter().any(|(_, v)| heap.tensor(*v).is_some()));
    let inner = STATE_KEYS.iter().filter_map(|key| heap.item(root, key));
    let found = std::iter::once(root).chain(inner).find(|v| holds_tensors(*v));
    found.and_then(|v| heap.dict(v)).ok_or_else(|| {
        format!("holds no tensors by name, neither at its top nor under {}", STATE_KEYS.join(", "))
    })
}

impl View {
    fn new(t: &TensorRef, contents: &Contents, file_bytes: usize) -> Reason<Self> {
        let key = contents.heap.text(t.storage.key).unwrap_or_default();
        let storage =
            contents.storages.get(key).ok_or_else(|| format!("its storage {key} is not in the file"))?;
        let size = u64::from(t.dtype.size_bits()) / 8;
        let storage_bytes = t.storage.len.checked_mul(t.storage.dtype.map_or(1, |_| size));
        let have = (storage.end - storage.start) as u64;
        if t.storage.view_at == 0 && storage_bytes.is_none_or(|n| n > have) {
            return Err(format!(
                "its storage {key} should have {} elements, but has {have} bytes",
                t.storage.len
            ));
        }
        let too_large = || format!("shape {:?} of {} is too large for the file", t.shape, t.dtype);
        let len = shape_bytes(&t.shape, t.dtype).ok_or_else(too_large)?;
        if len > file_bytes as u64 + SLACK_BYTES {
            return Err(too_large());
        }
        let start = t.offset.checked_add(t.storage.view_at).and_then(|n| n.checked_mul(size));
        let end = start.and_then(|start| start.checked_add(extent(t, size)?));
        match (start, end) {
            (Some(start), Some(end)) if end <= have => Ok(View {
                dtype: t.dtype,
                shape: t.shape.clone(),
                // Strides of dimensions that are never stepped along may be anything.
                strides: t.strides.iter().map(|s| s.saturating_mul(size)).collect(),
                at: storage.start + start as usize,
                len: len as usize,
            }),
            _ => Err(format!(
                "offset {}, shape {:?}, strides {:?} reach past the {have} bytes of its storage {key}",
                t.offset, t.shape, t.strides
            )),
        }
    }

    fn is_contiguous(&self) -> bool {
        if self.len == 0 {
            return true;
        }
        let mut want = u64::from(self.dtype.size_bits()) / 8;
        for (&d, &stride) in self.shape.iter().zip(&self.strides).rev() {
            if d > 1 && stride != want {
                return false;
            }
            want *= d;
        }
        true
    }

    /// The elements in row-major order.
    fn gather(&self, file: &[u8]) -> Vec<u8> {
        let size = self.dtype.size_bits() as usize / 8;
        let mut out = Vec::with_capacity(self.len);
        let mut index = vec![0; self.shape.len()];
        let mut at = self.at;
        while out.len() < self.len {
            out.extend_from_slice(&file[at..at + size]);
            // One step of an odometer, the last dimension fastest.
            for dim in (0..self.shape.len()).rev() {
                let stride = self.strides[dim] as usize;
                index[dim] += 1;
                if index[dim] < self.shape[dim] {
                    at += stride;
                    break;
                }
                at -= stride * (self.shape[dim] as usize - 1);
                index[dim] = 0;
            }
        }
        out
    }
}

/// Bytes from a tensor's first element to just past its last; `None` when that overflows.
fn extent(t: &TensorRef, size: u64) -> Option<u64> {
    if t.shape.contains(&0) {
        return Some(0);
    }
    let steps =
        t.shape.iter().zip(&t.strides).try_fold(0u64, |n, (d, s)| n.checked_add((d - 1).checked_mul(*s)?))?;
    steps.checked_add(1)?.checked_mul(size)
}

#[cfg(test)]
#[path = "torch_bin_tests.rs"]
mod tests;
