//! Which files of a directory hold its weights.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use super::LoadFormat;
use crate::config::read_json;
use crate::limits::MAX_CHECKPOINT_FILES;
use crate::{Error, Result};

/// The weight files of a checkpoint.
#[derive(Debug)]
pub(super) struct Found {
    pub kind: Kind,
    /// Without duplicates.
    pub files: Vec<PathBuf>,
    /// With an index: its path, and for each tensor its place in `files`.
    pub index: Option<(PathBuf, BTreeMap<String, usize>)>,
}

/// Format of weight files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Safetensors,
    Torch,
}

/// How one kind of checkpoint names its files.
struct Layout {
    kind: Kind,
    index: &'static str,
    single: &'static str,
    /// Shards without an index: `<stem>-00001-of-00002.<extension>`.
    stem: &'static str,
    extensions: &'static [&'static str],
    /// Files that hold no model, by how their name starts.
    ignored: &'static [&'static str],
}

const SAFETENSORS: Layout = Layout {
    kind: Kind::Safetensors,
    index: "model.safetensors.index.json",
    single: "model.safetensors",
    stem: "model-",
    extensions: &["safetensors"],
    ignored: &["consolidated", "adapter_"],
};

const TORCH: Layout = Layout {
    kind: Kind::Torch,
    index: "pytorch_model.bin.index.json",
    single: "pytorch_model.bin",
    stem: "pytorch_model-",
    extensions: &["bin", "pt", "pth"],
    ignored: &["consolidated", "adapter_", "training_args", "optimizer", "scheduler", "rng_state", "scaler"],
};

/// Looks for what `format` asks for; `Auto` prefers safetensors.
pub(super) fn find(dir: &Path, format: LoadFormat) -> Result<Found> {
    let layouts: &[&Layout] = match format {
        LoadFormat::Safetensors => &[&SAFETENSORS],
        LoadFormat::Pt => &[&TORCH],
        LoadFormat::Auto | LoadFormat::Dummy | LoadFormat::Gguf => &[&SAFETENSORS, &TORCH],
    };
    let names = file_names(dir)?;
    for layout in layouts {
        if let Some(found) = layout.find(dir, &names)? {
            return Ok(found);
        }
    }
    let wanted: Vec<_> = layouts.iter().flat_map(|l| [l.index, l.single]).collect();
    Err(Error::Checkpoint(format!(
        "{}: holds no weights; one of {} is wanted{}",
        dir.display(),
        wanted.join(", "),
        other_files_hint(&names)
    )))
}

impl Layout {
    fn find(&self, dir: &Path, names: &[String]) -> Result<Option<Found>> {
        let has = |name: &str| names.iter().any(|n| n == name);
        if has(self.index) {
            return self.by_index(dir, names).map(Some);
        }
        if has(self.single) {
            return Ok(Some(self.plain(dir, &[self.single.to_owned()])));
        }
        let mine: Vec<String> = names.iter().filter(|n| self.holds_weights(n)).cloned().collect();
        let shards: Vec<String> = mine.iter().filter(|n| n.starts_with(self.stem)).cloned().collect();
        check_shards(dir, &shards)?;
        let files = if shards.is_empty() { mine } else { shards };
        Ok((!files.is_empty()).then(|| self.plain(dir, &files)))
    }

    fn holds_weights(&self, name: &str) -> bool {
        let extension = name.rsplit_once('.').map_or("", |(_, e)| e);
        self.extensions.contains(&extension) && !self.ignored.iter().any(|i| name.starts_with(i))
    }

    fn plain(&self, dir: &Path, names: &[String]) -> Found {
        let files = names.iter().map(|n| dir.join(n)).collect();
        Found { kind: self.kind, files, index: None }
    }

    fn by_index(&self, dir: &Path, names: &[String]) -> Result<Found> {
        let path = dir.join(self.index);
        let bad = |reason: String| Error::Checkpoint(format!("{}: {reason}", path.display()));
        let json = read_json(&path)?;
        let map = json.get("weight_map").and_then(Value::as_object).ok_or_else(|| {
            bad("has no weight_map; an object from tensor names to file names is wanted".into())
        })?;
        if map.is_empty() {
            return Err(bad("weight_map is empty".into()));
        }
        let (mut places, mut files, mut index) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
        for (tensor, file) in map {
            let file = file
                .as_str()
                .filter(|f| is_plain(f))
                .ok_or_else(|| bad(format!("tensor {tensor} is in {file}; a file name is wanted")))?;
            let place = *places.entry(file).or_insert_with(|| {
                files.push(dir.join(file));
                files.len() - 1
            });
            let here = names.iter().any(|n| n == file) || dir.join(file).is_file();
            if !here {
                return Err(bad(format!(
                    "tensor {tensor} is said to be in {file}, which is not there (incomplete download?)"
                )));
            }
            index.insert(tensor.clone(), place);
        }
        if files.len() > MAX_CHECKPOINT_FILES {
            return Err(bad(format!("names {} files; at most {MAX_CHECKPOINT_FILES} are read", files.len())));
        }
        Ok(Found { kind: self.kind, files, index: Some((path, index)) })
    }
}

/// A relative path that stays below its directory.
fn is_plain(file: &str) -> bool {
    !file.is_empty() && Path::new(file).components().all(|c| matches!(c, Component::Normal(_)))
}

/// Names of the regular files (or links to them) right in `dir`, sorted.
fn file_names(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let entry = entry.map_err(|e| Error::io(dir, e))?;
        if let Some(name) = entry.file_name().to_str()
            && entry.path().is_file()
        {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Shards without an index still say how many there are.
fn check_shards(dir: &Path, shards: &[String]) -> Result<()> {
    let total = |name: &String| -> Option<usize> {
        let stem = name.rsplit_once('.')?.0;
        stem.rsplit_once("-of-")?.1.parse().ok()
    };
    match shards.iter().find_map(total) {
        Some(total) if total != shards.len() => Err(Error::Checkpoint(format!(
            "{}: {} is one of {total} files, but {} are there (incomplete download?)",
            dir.display(),
            shards[0],
            shards.len()
        ))),
        _ => Ok(()),
    }
}

fn other_files_hint(names: &[String]) -> String {
    let is = |end: &str| names.iter().find(|n| n.to_ascii_lowercase().ends_with(end));
    match [".gguf", ".h5", ".msgpack", ".onnx", ".nemo", ".safetensors", ".bin", ".pt", ".pth"]
        .iter()
        .find_map(|end| is(end))
    {
        Some(name) => format!(" ({name} is there, but not read with this --load-format)"),
        None => String::new(),
    }
}
