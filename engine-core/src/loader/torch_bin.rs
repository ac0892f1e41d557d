//! Torch checkpoints (`pytorch_model.bin`, `.pt`).

use std::path::{Path, PathBuf};

use super::{FileDType, HostBytes, HostTensor};
use crate::{Error, Result};

/// One open torch file.
#[derive(Debug)]
pub struct TorchFile {
    path: PathBuf,
}

impl TorchFile {
    /// Refused until the reader lands.
    ///
    /// # Errors
    /// [`Error::Unsupported`], always.
    pub fn open(path: &Path) -> Result<Self> {
        Err(Error::Unsupported(format!("{}: torch files are not read yet", path.display())))
    }
    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// Names of its tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::empty()
    }
    /// Element type and shape of a tensor.
    pub fn info(&self, _name: &str) -> Option<(FileDType, &[u64])> {
        None
    }
    /// One tensor.
    ///
    /// # Errors
    /// None yet.
    pub fn tensor(&self, _name: &str) -> Result<Option<HostTensor>> {
        Ok(None)
    }
    /// The whole file.
    pub fn data(&self) -> HostBytes {
        HostBytes::from(Vec::new())
    }
}
