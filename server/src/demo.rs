//! The bundled model: its files are part of the binary, and are laid out in the user's cache once.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::model::StartError;

/// Name the bundled model is served under.
pub const NAME: &str = "pallium-demo";

const FILES: [(&str, &[u8]); 5] = [
    ("config.json", include_bytes!("../../demo-model/config.json")),
    ("generation_config.json", include_bytes!("../../demo-model/generation_config.json")),
    ("tokenizer.json", include_bytes!("../../demo-model/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../../demo-model/tokenizer_config.json")),
    ("model.safetensors", include_bytes!("../../demo-model/model.safetensors")),
];

/// A directory with the bundled model in it: in the user's cache, else in the temporary directory.
///
/// # Errors
/// When neither can be written.
pub fn directory() -> Result<PathBuf, StartError> {
    let name = format!("demo-model-{}", fingerprint());
    let mut reasons = Vec::new();
    for parent in parents() {
        let dir = parent.join(&name);
        match lay_out(&dir) {
            Ok(()) => return Ok(dir),
            Err(e) => reasons.push(format!("{}: {e}", dir.display())),
        }
    }
    Err(StartError::new(format!(
        "the bundled model needs a directory to be unpacked to ({}); set XDG_CACHE_HOME to one, or name a MODEL",
        reasons.join("; ")
    )))
}

fn parents() -> Vec<PathBuf> {
    let var = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let cache = var("XDG_CACHE_HOME").or_else(|| var("HOME").map(|home| home.join(".cache")));
    let temporary = std::env::temp_dir().join(format!("pallium-{}", std::process::id()));
    cache.map(|c| c.join("pallium")).into_iter().chain([temporary]).collect()
}

/// Of all files together, so that another build's model gets a directory of its own.
fn fingerprint() -> String {
    let mut hash = Sha256::new();
    for (name, bytes) in FILES {
        hash.update(name.as_bytes());
        hash.update(bytes);
    }
    hash.finalize().iter().take(6).map(|b| format!("{b:02x}")).collect()
}

/// Writes what is missing or differs; each file appears whole.
fn lay_out(dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    for (name, bytes) in FILES {
        let path = dir.join(name);
        if std::fs::read(&path).is_ok_and(|there| there == bytes) {
            continue;
        }
        let partial = dir.join(format!(".{name}.{}", std::process::id()));
        std::fs::File::create(&partial)?.write_all(bytes)?;
        std::fs::rename(&partial, &path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn a_damaged_file_is_written_again() {
        let dir = std::env::temp_dir().join(format!("pallium-demo-test-{}", std::process::id()));
        lay_out(&dir).unwrap();
        std::fs::write(dir.join("config.json"), "{").unwrap();
        lay_out(&dir).unwrap();
        for (name, bytes) in FILES {
            assert_eq!(std::fs::read(dir.join(name)).unwrap(), bytes, "{name}");
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
