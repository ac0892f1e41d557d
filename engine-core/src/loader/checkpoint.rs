//! [`Checkpoint`]: the weights of a directory, by tensor name.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};

use super::index::{self, Found, Kind};
use super::safetensors::SafetensorsFile;
use super::torch_bin::TorchFile;
use super::{Advice, FileDType, HostBytes, HostTensor, shape_bytes};
use crate::{Error, Result};

/// Where weights come from (`--load-format`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LoadFormat {
    /// Safetensors where there are any, else torch files.
    #[default]
    Auto,
    Safetensors,
    /// `pytorch_model.bin` and `.pt`.
    Pt,
    /// A GGUF file; see `loader::gguf_model`.
    Gguf,
    /// Random weights of the configuration's shape; no weight file is read.
    Dummy,
}

/// The weight files that [`Checkpoint::open`] would read; none for `Dummy`. A shard that an index names, or that
/// the others' names call for, must be there.
///
/// # Errors
/// [`Error::Checkpoint`] when there are none, or one is missing.
pub fn weight_files(dir: &Path, format: LoadFormat) -> Result<Vec<PathBuf>> {
    match format {
        LoadFormat::Dummy | LoadFormat::Gguf => Ok(Vec::new()),
        _ => Ok(index::find(dir, format)?.files),
    }
}

/// Every tensor of one model. Opening reads headers only; tensors are ranges of mapped files.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    files: Vec<WeightFile>,
    /// Which file holds a tensor.
    table: BTreeMap<String, usize>,
}

impl std::str::FromStr for LoadFormat {
    type Err = String;
    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "auto" => Ok(LoadFormat::Auto),
            "safetensors" => Ok(LoadFormat::Safetensors),
            "pt" => Ok(LoadFormat::Pt),
            "gguf" => Ok(LoadFormat::Gguf),
            "dummy" => Ok(LoadFormat::Dummy),
            _ => Err(format!("{name:?}; one of auto, safetensors, pt, gguf, dummy is wanted")),
        }
    }
}

impl Checkpoint {
    /// Opens the weights in `dir`. `consolidated.*` files and folders (`original/`) beside them are ignored.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming file and tensor when weights are missing, damaged or contradict their index;
    /// [`Error::Config`] for `Dummy`, which has no files (`source::DummySource` makes its weights).
    pub fn open(dir: &Path, format: LoadFormat) -> Result<Self> {
        match format {
            LoadFormat::Dummy => {
                return Err(Error::Config("--load-format dummy reads no weight files".to_owned()));
            }
            LoadFormat::Gguf => {
                return Err(Error::Config(format!("{}: is no GGUF file", dir.display())));
            }
            _ => {}
        }
        let found = index::find(dir, format)?;
        let files = found.files.iter().map(|path| WeightFile::open(path, found.kind));
        let files = files.collect::<Result<Vec<_>>>()?;
        let table = table(&found, &files)?;
        Ok(Checkpoint { dir: dir.to_owned(), files, table })
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.table.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.table.contains_key(name)
    }

    /// Element type and shape of a tensor, without touching its bytes.
    pub fn info(&self, name: &str) -> Option<(FileDType, &[u64])> {
        self.files[*self.table.get(name)?].info(name)
    }

    /// One tensor. No copy is made unless a torch file holds it strided.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming the tensor when there is none.
    pub fn tensor(&self, name: &str) -> Result<HostTensor> {
        let tensor = match self.table.get(name) {
            Some(file) => self.files[*file].tensor(name)?,
            None => None,
        };
        tensor.ok_or_else(|| {
            Error::Checkpoint(format!(
                "{}: has no tensor {name} (it has {}{})",
                self.dir.display(),
                self.names().count(),
                self.nearest(name).map(|n| format!(", such as {n}")).unwrap_or_default()
            ))
        })
    }

    /// The file that holds a tensor (the directory when none does), for messages.
    pub fn file_of(&self, name: &str) -> &Path {
        self.table.get(name).map_or(&self.dir, |i| self.files[*i].path())
    }

    /// Bytes of all tensors together.
    pub fn total_bytes(&self) -> u64 {
        let bytes = |name| self.info(name).and_then(|(dtype, shape)| shape_bytes(shape, dtype));
        self.names().filter_map(bytes).sum()
    }

    /// Number of weight files.
    pub fn file_count(&self) -> usize {
        self.files.len()
    }

    /// Tells the kernel how the weight files will be used.
    pub fn advise(&self, advice: Advice) {
        self.files.iter().for_each(|f| f.data().advise(advice));
    }

    /// A tensor whose name ends like `name` does, for messages.
    fn nearest(&self, name: &str) -> Option<&str> {
        let common =
            |other: &str| other.bytes().rev().zip(name.bytes().rev()).take_while(|(a, b)| a == b).count();
        self.names().max_by_key(|other| common(other))
    }
}

/// One open file of either format.
#[derive(Debug)]
enum WeightFile {
    Safetensors(SafetensorsFile),
    Torch(TorchFile),
}

impl WeightFile {
    fn open(path: &Path, kind: Kind) -> Result<Self> {
        match kind {
            Kind::Safetensors => SafetensorsFile::open(path).map(WeightFile::Safetensors),
            Kind::Torch => TorchFile::open(path).map(WeightFile::Torch),
        }
    }
    fn path(&self) -> &Path {
        match self {
            WeightFile::Safetensors(f) => f.path(),
            WeightFile::Torch(f) => f.path(),
        }
    }
    fn names(&self) -> Vec<&str> {
        match self {
            WeightFile::Safetensors(f) => f.tensors().iter().map(|t| t.name.as_str()).collect(),
            WeightFile::Torch(f) => f.names().collect(),
        }
    }
    fn info(&self, name: &str) -> Option<(FileDType, &[u64])> {
        match self {
            WeightFile::Safetensors(f) => f.info(name).map(|t| (t.dtype, &*t.shape)),
            WeightFile::Torch(f) => f.info(name),
        }
    }
    fn tensor(&self, name: &str) -> Result<Option<HostTensor>> {
        match self {
            WeightFile::Safetensors(f) => Ok(f.tensor(name)),
            WeightFile::Torch(f) => f.tensor(name),
        }
    }
    fn data(&self) -> HostBytes {
        match self {
            WeightFile::Safetensors(f) => f.data(),
            WeightFile::Torch(f) => f.data(),
        }
    }
}

/// Which file holds which tensor: as the index says, else as the files do.
fn table(found: &Found, files: &[WeightFile]) -> Result<BTreeMap<String, usize>> {
    let mut table = BTreeMap::new();
    if let Some((index, map)) = &found.index {
        for (tensor, &place) in map {
            if files[place].info(tensor).is_none() {
                return Err(Error::Checkpoint(format!(
                    "{}: tensor {tensor} is said to be in {}, which has no such tensor",
                    index.display(),
                    files[place].path().display()
                )));
            }
        }
        table.clone_from(map);
    }
    for (place, file) in files.iter().enumerate() {
        for name in file.names() {
            match table.entry(name.to_owned()) {
                Entry::Vacant(entry) => {
                    entry.insert(place);
                }
                // An index has the last word; without one, two files may not claim a tensor.
                Entry::Occupied(other) if found.index.is_none() => {
                    return Err(Error::Checkpoint(format!(
                        "tensor {name} stands in both {} and {}; one of them is wanted",
                        files[*other.get()].path().display(),
                        file.path().display()
                    )));
                }
                Entry::Occupied(_) => {}
            }
        }
    }
    Ok(table)
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
