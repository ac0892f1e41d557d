//! [`HubError`]: why a model could not be had, and what would help.

use std::path::PathBuf;

/// Every message names the model or file, what was found, and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The name is neither a directory nor an id.
    #[error("{model}: {reason}")]
    BadModel { model: String, reason: String },
    /// 401 or 403.
    #[error("{id}: {endpoint} answered {status}: {hint}")]
    Forbidden { id: String, endpoint: String, status: u16, hint: &'static str },
    /// 404: no such repository, revision or file.
    #[error(
        "{id} has no {what} at revision {revision} on {endpoint} (404); check the spelling, or --revision"
    )]
    NotFound { id: String, revision: String, what: String, endpoint: String },
    /// HF_HUB_OFFLINE is set and the cache does not do.
    #[error("{id}: HF_HUB_OFFLINE is set, and {lack} (cache: {})", cache.display())]
    Offline { id: String, lack: String, cache: PathBuf },
    /// No file of the repository is what was asked for.
    #[error("{id}: {reason}")]
    NothingToDo { id: String, reason: String },
    /// The network or the hub failed, again and again.
    #[error("{url}: {reason}")]
    Network { url: String, reason: String },
    /// A download stopped; what is there is kept.
    #[error("{id}: {path} stopped at {have_bytes} of {want_bytes} bytes ({reason}); run again to resume")]
    Interrupted { id: String, path: String, have_bytes: u64, want_bytes: u64, reason: String },
    /// The bytes are not those the hub announced, twice.
    #[error("{id}: {path} arrived damaged: {reason}; it was removed")]
    Corrupt { id: String, path: String, reason: String },
    /// The hub's answer makes no sense.
    #[error("{url}: {reason}")]
    Protocol { url: String, reason: String },
    /// SSL_CERT_FILE or REQUESTS_CA_BUNDLE names no certificates.
    #[error("{}: holds no certificate; a PEM file is wanted (SSL_CERT_FILE, REQUESTS_CA_BUNDLE)", path.display())]
    Authorities { path: PathBuf },
    /// No space left.
    #[error("{}: the disk is full ({wanted_bytes} bytes are still to come); free space, or set HF_HOME to another disk", path.display())]
    DiskFull { path: PathBuf, wanted_bytes: u64 },
    /// The operating system refused something else.
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
}

impl HubError {
    /// From a refused file operation; a full disk becomes [`HubError::DiskFull`].
    pub(super) fn io(path: &std::path::Path, source: std::io::Error, wanted_bytes: u64) -> Self {
        match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                HubError::DiskFull { path: path.to_owned(), wanted_bytes }
            }
            _ => HubError::Io { path: path.to_owned(), source },
        }
    }
}
