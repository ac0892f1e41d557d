//! Files into the cache: several at a time, resumed where an earlier run stopped, checked before they get their name.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use sha2::{Digest, Sha256};
use ureq::http::{StatusCode, header};

use super::cache::RepoCache;
use super::client::{Client, Failure, Meta, Subject, TRIES};
use super::{Event, HubError, OnEvent, Result};

/// Files that arrive at once.
const PARALLEL: usize = 4;

/// A download of one commit's files.
pub(super) struct Downloads<'a> {
    pub client: &'a Client,
    pub cache: &'a RepoCache,
    pub id: &'a str,
    pub commit: &'a str,
    pub on_event: OnEvent<'a>,
}

impl Downloads<'_> {
    /// Brings all of `first` into the snapshot, then all of `then`.
    pub fn run(&self, first: &[String], then: &[String]) -> Result<()> {
        let absent = |paths: &[String]| -> Vec<String> {
            paths.iter().filter(|path| !self.cache.has(self.commit, path)).cloned().collect()
        };
        let (first, then) = (self.plan(absent(first))?, self.plan(absent(then))?);
        let both = || first.iter().chain(&then);
        let size = |path: &Path| std::fs::metadata(path).map_or(0, |m| m.len());
        let wanted = || both().filter(|(_, meta)| !self.cache.blob(&meta.etag).is_file());
        (self.on_event)(Event::Planned {
            files: wanted().count(),
            total_bytes: wanted().map(|(_, meta)| meta.bytes).sum(),
            resumed_bytes: wanted().map(|(_, m)| size(&self.cache.partial(&m.etag)).min(m.bytes)).sum(),
        });
        for group in [&first, &then] {
            parallel(group, |(path, meta)| self.file(path, meta))?;
        }
        Ok(())
    }

    /// Checksums and sizes, asked for several at a time.
    fn plan(&self, paths: Vec<String>) -> Result<Vec<(String, Meta)>> {
        let found = Mutex::new(Vec::with_capacity(paths.len()));
        parallel(&paths, |path| {
            let meta = self.client.meta(self.subject(path))?;
            lock(&found).push((path.clone(), meta));
            Ok(())
        })?;
        Ok(found.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    fn subject<'a>(&'a self, path: &'a str) -> Subject<'a> {
        Subject { id: self.id, revision: self.commit, path }
    }

    /// One file into the snapshot.
    fn file(&self, path: &str, meta: &Meta) -> Result<()> {
        let held = self.cache.lock(&meta.etag)?;
        let blob = self.cache.blob(&meta.etag);
        if !blob.is_file() {
            self.blob(path, meta)?;
            let partial = self.cache.partial(&meta.etag);
            std::fs::rename(&partial, &blob).map_err(|e| HubError::io(&blob, e, 0))?;
        }
        drop(held);
        self.cache.link(self.commit, path, &meta.etag)?;
        (self.on_event)(Event::FileDone { path });
        Ok(())
    }

    /// The whole contents into the partial file, checked; damaged ones are fetched once more.
    fn blob(&self, path: &str, meta: &Meta) -> Result<()> {
        let partial = self.cache.partial(&meta.etag);
        for last in [false, true] {
            let mut transfer = Transfer::open(&partial, meta)?;
            self.transfer(path, &mut transfer)?;
            match transfer.finish()? {
                None => return Ok(()),
                Some(reason) => {
                    std::fs::remove_file(&partial).map_err(|e| HubError::io(&partial, e, 0))?;
                    (self.on_event)(Event::Discarded(meta.bytes));
                    if last {
                        return Err(HubError::Corrupt {
                            id: self.id.to_owned(),
                            path: path.to_owned(),
                            reason,
                        });
                    }
                }
            }
        }
        Ok(())
    }

    /// Requests until every byte is there; tries that bring bytes are not counted.
    fn transfer(&self, path: &str, transfer: &mut Transfer<'_>) -> Result<()> {
        let mut tries = 0;
        while transfer.have < transfer.meta.bytes {
            let before = transfer.have;
            let reason = match self.request(path, transfer) {
                Ok(()) => continue,
                Err(Failure::Final(e)) => return Err(e),
                Err(Failure::Transient(reason)) => reason,
            };
            tries = if transfer.have > before { 1 } else { tries + 1 };
            if tries == TRIES {
                return Err(HubError::Interrupted {
                    id: self.id.to_owned(),
                    path: path.to_owned(),
                    have_bytes: transfer.have,
                    want_bytes: transfer.meta.bytes,
                    reason,
                });
            }
            (self.on_event)(Event::Retry { path, reason: &reason });
            self.client.pause(tries);
        }
        Ok(())
    }

    /// One request, from where the partial file ends.
    fn request(&self, path: &str, transfer: &mut Transfer<'_>) -> std::result::Result<(), Failure> {
        let response = self.client.open(self.subject(path), transfer.have)?;
        let start = response.headers().get(header::CONTENT_RANGE).and_then(|v| v.to_str().ok());
        let start = start.and_then(|v| v.strip_prefix("bytes ")?.split('-').next()?.parse::<u64>().ok());
        match response.status() {
            StatusCode::PARTIAL_CONTENT if start == Some(transfer.have) => {}
            StatusCode::PARTIAL_CONTENT => {
                let reason =
                    format!("asked for bytes from {}, the answer starts at {start:?}", transfer.have);
                return Err(Failure::Final(HubError::Protocol {
                    url: self.client.file_url(self.subject(path)),
                    reason,
                }));
            }
            // The server does not know ranges: start over.
            _ => {
                if transfer.have > 0 {
                    (self.on_event)(Event::Discarded(transfer.have));
                }
                transfer.restart().map_err(Failure::Final)?;
            }
        }
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 1 << 17];
        loop {
            let n = match body.read(&mut buffer) {
                Ok(0) if transfer.have < transfer.meta.bytes => {
                    return Err(Failure::Transient("the connection was closed".to_owned()));
                }
                Ok(0) => return Ok(()),
                Ok(n) => n,
                Err(e) => return Err(Failure::Transient(e.to_string())),
            };
            transfer.append(&buffer[..n]).map_err(Failure::Final)?;
            if transfer.have > transfer.meta.bytes {
                return Ok(());
            }
            (self.on_event)(Event::Bytes(n as u64));
        }
    }
}

/// A partial file, with the checksum of what is in it.
struct Transfer<'a> {
    path: &'a Path,
    meta: &'a Meta,
    file: File,
    hash: Sha256,
    have: u64,
}

impl<'a> Transfer<'a> {
    /// Opens what an earlier run left, or a new file.
    fn open(path: &'a Path, meta: &'a Meta) -> Result<Self> {
        let file = File::options().create(true).truncate(false).read(true).write(true).open(path);
        let file = file.map_err(|e| HubError::io(path, e, meta.bytes))?;
        let mut transfer = Transfer { path, meta, file, hash: Sha256::new(), have: 0 };
        let left = transfer.file.metadata().map_or(0, |m| m.len());
        if left > meta.bytes {
            transfer.restart()?;
        } else {
            transfer.read_back(left)?;
        }
        Ok(transfer)
    }

    /// Takes what is in the file already into the checksum.
    fn read_back(&mut self, bytes: u64) -> Result<()> {
        let mut buffer = vec![0; 1 << 20];
        while self.have < bytes {
            let n = self.file.read(&mut buffer).map_err(|e| HubError::io(self.path, e, 0))?;
            if n == 0 {
                break;
            }
            self.hash.update(&buffer[..n]);
            self.have += n as u64;
        }
        Ok(())
    }

    fn restart(&mut self) -> Result<()> {
        if self.file.metadata().is_ok_and(|m| m.len() > 0) {
            let cleared = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
            cleared.map_err(|e| HubError::io(self.path, e, 0))?;
        }
        (self.hash, self.have) = (Sha256::new(), 0);
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let to_come = self.meta.bytes.saturating_sub(self.have);
        if bytes.len() as u64 > to_come {
            // The check at the end says so; nothing past the announced size is kept.
            self.have = u64::MAX;
            return Ok(());
        }
        self.file.write_all(bytes).map_err(|e| HubError::io(self.path, e, to_come))?;
        self.hash.update(bytes);
        self.have += bytes.len() as u64;
        Ok(())
    }

    /// Makes the file durable; a reason when it is not what was announced.
    fn finish(self) -> Result<Option<String>> {
        if self.have != self.meta.bytes {
            return Ok(Some(format!("it is longer than the {} bytes announced", self.meta.bytes)));
        }
        let got: String = self.hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
        if let Some(want) = self.meta.sha256()
            && !want.eq_ignore_ascii_case(&got)
        {
            return Ok(Some(format!("its sha256 is {got}, the hub says {want}")));
        }
        self.file.sync_data().map_err(|e| HubError::io(self.path, e, 0))?;
        Ok(None)
    }
}

/// Runs `work` on every item, a few at a time; the first error stops what has not begun.
fn parallel<T: Sync>(items: &[T], work: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
    let run = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(e) = work(item) {
                next.store(items.len(), Ordering::Relaxed);
                lock(&failed).get_or_insert(e);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL.min(items.len()) {
            scope.spawn(run);
        }
    });
    match failed.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
        Some(e) => Err(e),
        None => Ok(()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
