//! [`HostBytes`]: a shared, read-only range of bytes on the host: a mapped file, or a vector.
//!
//! This is the one module of the engine with `unsafe`: mapping a file is unsound when another process truncates
//! or rewrites it meanwhile. Checkpoints are immutable by contract (the hub writes under another name and
//! renames); a file truncated under a running server ends the process with SIGBUS, as with every engine that
//! maps its weights.

#![allow(unsafe_code)]

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use crate::{Error, Result};

/// A range of read-only bytes. Cloning and slicing copy no data; the mapping (or vector) lives as long as any
/// range of it.
#[derive(Clone)]
pub struct HostBytes {
    owner: Owner,
    at: usize,
    len: usize,
}

/// What the kernel should expect of a range. Without effect on vectors and on systems that map without advice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// It will be read soon: start reading ahead.
    WillNeed,
    /// It will be read once, front to back.
    Sequential,
    /// This process is done with it: its pages leave the resident set (the page cache keeps them).
    DontNeed,
}

impl HostBytes {
    /// Maps a whole file read-only. An empty file gives empty bytes.
    ///
    /// # Errors
    /// [`Error::Io`] naming the path when it cannot be opened, is no regular file, or cannot be mapped.
    pub fn map_file(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let meta = file.metadata().map_err(|e| Error::io(path, e))?;
        if !meta.is_file() {
            let reason = "is not a regular file".to_owned();
            return Err(Error::Io { path: path.display().to_string(), reason });
        }
        if meta.len() == 0 {
            return Ok(HostBytes::from(Vec::new()));
        }
        // SAFETY: the mapping is read-only and private to this type, which only ever hands out `&[u8]`. That the
        // file does not change under us is the contract stated at the top of this module.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        let len = map.len();
        Ok(HostBytes { owner: Owner::Mapped(Arc::new(map)), at: 0, len })
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        let all: &[u8] = match &self.owner {
            Owner::Mapped(map) => map,
            Owner::Vector(vector) => vector,
        };
        &all[self.at..self.at + self.len]
    }

    /// A part of this range; shares the mapping.
    ///
    /// # Panics
    /// If `range` reaches past the end.
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "slice {range:?} of {} bytes on the host",
            self.len
        );
        HostBytes { owner: self.owner.clone(), at: self.at + range.start, len: range.end - range.start }
    }

    /// Whether the bytes come straight from a mapped file.
    pub fn is_mapped(&self) -> bool {
        matches!(self.owner, Owner::Mapped(_))
    }

    /// Tells the kernel how this range will be used. Advice that is refused changes nothing but speed, so
    /// refusals are ignored.
    pub fn advise(&self, advice: Advice) {
        if self.len == 0 {
            return;
        }
        #[cfg(unix)]
        if let Owner::Mapped(map) = &self.owner {
            let _ = match advice {
                Advice::WillNeed => map.advise_range(memmap2::Advice::WillNeed, self.at, self.len),
                Advice::Sequential => map.advise_range(memmap2::Advice::Sequential, self.at, self.len),
                // SAFETY: on a read-only file mapping a dropped page is read again from the file at the next
                // access, so every `&[u8]` handed out stays valid and keeps its contents.
                Advice::DontNeed => unsafe {
                    map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, self.at, self.len)
                },
            };
        }
        #[cfg(not(unix))]
        let _ = advice;
    }
}

#[derive(Clone)]
enum Owner {
    Mapped(Arc<Mmap>),
    Vector(Arc<Vec<u8>>),
}

impl From<Vec<u8>> for HostBytes {
    fn from(vector: Vec<u8>) -> Self {
        let len = vector.len();
        HostBytes { owner: Owner::Vector(Arc::new(vector)), at: 0, len }
    }
}

impl Deref for HostBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl std::fmt::Debug for HostBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = if self.is_mapped() { "mapped" } else { "owned" };
        write!(f, "HostBytes({kind}, {} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::loader::testing::TempDir;

    #[test]
    fn a_mapped_file_reads_and_slices_like_its_contents() {
        let dir = TempDir::new("mmap");
        let path = dir.write("f", b"0123456789");
        let all = HostBytes::map_file(&path).unwrap();
        let part = all.slice(2..7).slice(1..3);
        drop(all);
        assert!(part.is_mapped());
        assert_eq!(&*part, b"34");
        for advice in [Advice::WillNeed, Advice::Sequential, Advice::DontNeed] {
            part.advise(advice);
            assert_eq!(part.as_slice(), b"34", "after {advice:?}");
        }
    }

    #[test]
    fn vectors_and_empty_files_work_alike() {
        let dir = TempDir::new("mmap-empty");
        let empty = HostBytes::map_file(&dir.write("e", b"")).unwrap();
        assert!(empty.is_empty());
        empty.advise(Advice::WillNeed);
        assert_eq!(&*HostBytes::from(vec![1, 2, 3]).slice(1..3), &[2, 3]);
    }

    #[test]
    fn a_missing_file_or_a_directory_is_named() {
        let dir = TempDir::new("mmap-missing");
        let missing = HostBytes::map_file(&dir.path().join("nope")).unwrap_err().to_string();
        assert!(missing.contains("nope"), "{missing}");
        let folder = HostBytes::map_file(dir.path()).unwrap_err().to_string();
        assert!(folder.contains("not a regular file"), "{folder}");
    }

    #[test]
    #[should_panic(expected = "slice 1..4 of 3 bytes")]
    fn a_slice_past_the_end_panics() {
        let _ = HostBytes::from(vec![1, 2, 3]).slice(1..4);
    }
}
