//! The cache's layout on disk, shared with Python's `huggingface_hub`:
//! ```text
//! models--org--name/refs/main                    the commit a branch or tag was last seen at
//! models--org--name/blobs/<etag>                 a file's contents; `<etag>.incomplete` while it arrives
//! models--org--name/snapshots/<commit>/<path>    links to blobs
//! .locks/models--org--name/<etag>.lock           held while a blob is written
//! ```

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::select::is_plain_path;
use super::{HubError, Result};

/// One repository's folder in the cache.
pub(super) struct RepoCache {
    root: PathBuf,
    folder: PathBuf,
    locks: PathBuf,
}

/// A commit that is (at least partly) in the cache.
pub(super) struct Snapshot {
    pub dir: PathBuf,
    pub commit: String,
}

impl RepoCache {
    /// The folder of `id` below the cache directory; nothing is made yet.
    pub fn new(root: &Path, id: &str) -> Self {
        let name = format!("models--{}", id.replace('/', "--"));
        RepoCache { root: root.to_owned(), folder: root.join(&name), locks: root.join(".locks").join(name) }
    }

    /// The cache directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What the cache knows of a branch, tag or commit.
    pub fn snapshot(&self, revision: &str) -> Option<Snapshot> {
        let of = |commit: &str| {
            let dir = self.snapshot_dir(commit);
            (is_name(commit) && dir.is_dir()).then(|| Snapshot { dir, commit: commit.to_owned() })
        };
        let by_ref = std::fs::read_to_string(self.folder.join("refs").join(revision)).ok();
        by_ref.and_then(|commit| of(commit.trim())).or_else(|| of(revision))
    }

    /// The directory of a commit's files.
    pub fn snapshot_dir(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Whether a snapshot already has a whole file.
    pub fn has(&self, commit: &str, path: &str) -> bool {
        self.snapshot_dir(commit).join(path).is_file()
    }

    /// Notes which commit a branch or tag is at.
    pub fn write_ref(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        make_parent(&path)?;
        let partial = beside(&path);
        let written = std::fs::write(&partial, commit).and_then(|()| std::fs::rename(&partial, &path));
        written.map_err(|e| HubError::io(&path, e, commit.len() as u64))
    }

    /// Where the contents called `etag` lie when they are whole.
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// Where they lie while they arrive.
    pub fn partial(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// Waits until no other process writes `etag`; the lock lasts as long as the file is held.
    pub fn lock(&self, etag: &str) -> Result<File> {
        let path = self.locks.join(format!("{etag}.lock"));
        make_parent(&path)?;
        make_parent(&self.blob(etag))?;
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let locked = file.and_then(|file| file.lock().map(|()| file));
        locked.map_err(|e| HubError::io(&path, e, 0))
    }

    /// Makes `path` of a snapshot lead to the blob `etag`. Where links are not to be had, it is
    /// copied.
    pub fn link(&self, commit: &str, path: &str, etag: &str) -> Result<()> {
        let target = self.snapshot_dir(commit).join(path);
        if target.is_file() {
            return Ok(());
        }
        make_parent(&target)?;
        // From snapshots/<commit>/<folders>: up once per folder, and twice more.
        let up = "../".repeat(2 + path.matches('/').count());
        let link = beside(&target);
        // Renamed into place, so that whoever looks meanwhile finds the file or nothing.
        let blob = self.blob(etag);
        let placed = symlink(Path::new(&format!("{up}blobs/{etag}")), &link)
            .or_else(|_| std::fs::hard_link(&blob, &link))
            .or_else(|_| std::fs::copy(&blob, &link).map(|_| ()))
            .and_then(|()| std::fs::rename(&link, &target));
        placed.map_err(|e| HubError::io(&target, e, 0))
    }
}

/// Whether an etag or commit from the network may become a file's name.
pub(super) fn is_name(name: &str) -> bool {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    plain && is_plain_path(name) && name.len() <= 128 && !name.starts_with('.')
}

/// A path in the same directory that nobody else uses.
fn beside(path: &Path) -> PathBuf {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let n = COUNTER.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".{}-{n}.partial", std::process::id()))
}

fn make_parent(path: &Path) -> Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    std::fs::create_dir_all(parent).map_err(|e| HubError::io(parent, e, 0))
}

#[cfg(unix)]
fn symlink(to: &Path, at: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(to, at)
}

#[cfg(not(unix))]
fn symlink(_to: &Path, _at: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}
