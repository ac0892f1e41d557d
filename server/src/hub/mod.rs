//! From what a user calls a model to a directory on this machine: a local directory, a snapshot in Hugging Face's
//! cache, or a download into that cache.
//!
//! The cache is the one Python's `huggingface_hub` keeps, file for file (`models--org--name/{refs,blobs,snapshots}`,
//! locks beside it), so that both can use the same downloads at the same time. A cached snapshot that is whole is
//! used without asking the network; [`pull`] always asks. Downloads resume, are checked against the hub's sha256,
//! and appear under their name only when whole.

mod cache;
mod client;
pub mod config;
mod download;
pub mod error;
pub mod select;

#[cfg(test)]
mod fake_hub;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use engine_core::loader::{LoadFormat, weight_files};

pub use config::HubConfig;
pub use error::HubError;

use cache::RepoCache;
pub(crate) use client::root_certs;

use client::Client;
use download::Downloads;
use select::Selection;

/// Result with [`HubError`].
pub type Result<T> = std::result::Result<T, HubError>;

/// What happens while a model is fetched, for a progress bar. Sent from several threads.
#[derive(Clone, Debug, PartialEq)]
pub enum Event<'a> {
    /// The files are known: how many have to be downloaded, their bytes, and how many of these are there already
    /// from an earlier run.
    Planned { files: usize, total_bytes: u64, resumed_bytes: u64 },
    /// This many bytes more.
    Bytes(u64),
    /// Bytes that turned out damaged and are fetched again.
    Discarded(u64),
    /// A file is whole and in its place.
    FileDone { path: &'a str },
    /// The connection failed; the download goes on after a pause.
    Retry { path: &'a str, reason: &'a str },
}

/// Receives [`Event`]s.
pub type OnEvent<'a> = &'a (dyn Fn(Event<'_>) + Sync);

/// Where a model was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    LocalDirectory,
    Cache,
    Download,
}

/// A model on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Directory with config.json, tokenizer and weights.
    pub dir: PathBuf,
    pub origin: Origin,
    /// Commit of the snapshot; none for a local directory.
    pub commit: Option<String>,
}

/// What to fetch.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// A directory, or a hub id (`org/name`).
    pub model: &'a str,
    /// Branch, tag or commit; `main` when absent.
    pub revision: Option<&'a str>,
    /// Decides which weight files are needed.
    pub format: LoadFormat,
}

/// Finds the model: a local directory, else a whole snapshot in the cache, else a download.
///
/// # Errors
/// [`HubError`], which names the model and says what would help.
pub fn resolve(request: &Request<'_>, config: &HubConfig, on_event: OnEvent<'_>) -> Result<Resolved> {
    let dir = Path::new(request.model);
    if dir.is_dir() {
        return Ok(Resolved { dir: dir.to_owned(), origin: Origin::LocalDirectory, commit: None });
    }
    let cache = repo(request, config)?;
    let cached = cache.snapshot(request.revision.unwrap_or(DEFAULT_REVISION));
    let lack = match &cached {
        Some(snapshot) => match missing(&snapshot.dir, request.format, config.offline) {
            None => {
                let (dir, commit) = (snapshot.dir.clone(), Some(snapshot.commit.clone()));
                return Ok(Resolved { dir, origin: Origin::Cache, commit });
            }
            Some(lack) => lack,
        },
        None => "it is not in the cache".to_owned(),
    };
    if config.offline {
        return Err(HubError::Offline { id: request.model.to_owned(), lack, cache: cache.root().to_owned() });
    }
    fetch(request, &cache, &[], config, on_event).map_err(|error| match error {
        // A mistyped directory ends here too.
        HubError::Network { url, reason } => {
            let reason = format!("{reason} ({} is no directory here, so the hub was asked)", request.model);
            HubError::Network { url, reason }
        }
        other => other,
    })
}

/// Brings the model's newest files into the cache: those that serving it needs or, with `include`, every file of the
/// repository that one of these globs matches.
///
/// # Errors
/// [`HubError`], which names the model and says what would help.
pub fn pull(
    request: &Request<'_>,
    include: &[String],
    config: &HubConfig,
    on_event: OnEvent<'_>,
) -> Result<Resolved> {
    if Path::new(request.model).is_dir() {
        return Err(HubError::BadModel {
            model: request.model.to_owned(),
            reason: "is a local directory; there is nothing to download".to_owned(),
        });
    }
    let cache = repo(request, config)?;
    if config.offline {
        let lack = "a pull needs the network".to_owned();
        return Err(HubError::Offline { id: request.model.to_owned(), lack, cache: cache.root().to_owned() });
    }
    fetch(request, &cache, include, config, on_event)
}

/// A snapshot with the files that one of `globs` matches: from the cache when `found` is content with it, else after
/// a download of those files.
///
/// # Errors
/// [`HubError`], which names the model and says what would help.
pub fn resolve_files(
    request: &Request<'_>,
    globs: &[String],
    config: &HubConfig,
    found: &dyn Fn(&Path) -> bool,
    on_event: OnEvent<'_>,
) -> Result<Resolved> {
    let cache = repo(request, config)?;
    let cached = cache.snapshot(request.revision.unwrap_or(DEFAULT_REVISION));
    if let Some(snapshot) = cached.filter(|s| found(&s.dir)) {
        return Ok(Resolved { dir: snapshot.dir, origin: Origin::Cache, commit: Some(snapshot.commit) });
    }
    if config.offline {
        let lack = "the file is not in the cache".to_owned();
        return Err(HubError::Offline { id: request.model.to_owned(), lack, cache: cache.root().to_owned() });
    }
    fetch(request, &cache, globs, config, on_event)
}

/// Branch that is meant when none is named.
const DEFAULT_REVISION: &str = "main";

fn fetch(
    request: &Request<'_>,
    cache: &RepoCache,
    include: &[String],
    config: &HubConfig,
    on_event: OnEvent<'_>,
) -> Result<Resolved> {
    let revision = request.revision.unwrap_or(DEFAULT_REVISION);
    let client = Client::new(config)?;
    let listing = client.listing(request.model, revision)?;
    let selection = match include.is_empty() {
        true => Selection::for_serving(&listing.files, request.format),
        false => Selection::matching(&listing.files, include),
    };
    selection.check(request, include)?;
    let downloads =
        Downloads { client: &client, cache, id: request.model, commit: &listing.commit, on_event };
    // Weights come last, so that a snapshot with whole weights has everything else.
    downloads.run(&selection.small, &selection.weights)?;
    cache.write_ref(revision, &listing.commit)?;
    let dir = cache.snapshot_dir(&listing.commit);
    Ok(Resolved { dir, origin: Origin::Download, commit: Some(listing.commit) })
}

fn repo(request: &Request<'_>, config: &HubConfig) -> Result<RepoCache> {
    let bad = |reason: String| HubError::BadModel { model: request.model.to_owned(), reason };
    if Path::new(request.model).is_file() {
        return Err(bad("is a file; a directory in Hugging Face layout, or a hub id, is wanted".to_owned()));
    }
    if !is_hub_id(request.model) {
        return Err(bad("is neither a directory nor a hub id of the form org/name".to_owned()));
    }
    if let Some(revision) = request.revision
        && !select::is_plain_path(revision)
    {
        return Err(bad(format!("revision {revision:?} is no name of a branch, tag or commit")));
    }
    Ok(RepoCache::new(&config.cache, request.model))
}

/// `name` or `org/name`, of letters, digits, `-`, `_` and `.`.
fn is_hub_id(model: &str) -> bool {
    let part = |p: &str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        !p.is_empty() && p.len() <= 96 && p.bytes().all(plain) && !p.starts_with('.') && !p.contains("..")
    };
    model.split('/').count() <= 2 && model.split('/').all(part)
}

/// What a snapshot lacks for serving, if anything. Offline, a missing tokenizer is left to be said by whoever needs it.
fn missing(dir: &Path, format: LoadFormat, offline: bool) -> Option<String> {
    if !dir.join("config.json").is_file() {
        return Some("its snapshot in the cache has no config.json".to_owned());
    }
    let tokenizers = ["tokenizer.json", "tokenizer.model", "vocab.json"];
    if !offline && !tokenizers.iter().any(|name| dir.join(name).is_file()) {
        return Some("its snapshot in the cache has no tokenizer".to_owned());
    }
    weight_files(dir, format).err().map(|e| format!("its snapshot in the cache is not whole: {e}"))
}
