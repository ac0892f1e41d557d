//! The one error type of engine-core and of every backend.
//!
//! Errors are what the caller cannot foresee: bad files, too little memory, a lost device. A wrong shape is a
//! bug and panics in [`crate::backend::checked`].

/// What can go wrong below the server. Every message names the thing, the value, and what would be right.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The device (or the host) has too little memory.
    #[error("out of memory: {what} needs {wanted_bytes} bytes, {free_bytes} bytes are free; {hint}")]
    OutOfMemory { what: String, wanted_bytes: u64, free_bytes: u64, hint: String },
    /// The device is gone, or a kernel faulted; nothing on it can be trusted any more.
    #[error("device lost during {op}: {reason}")]
    DeviceLost { op: String, reason: String },
    /// Another rank is gone.
    #[error("peer {rank} lost: {reason}")]
    PeerLost { rank: u32, reason: String },
    /// This device, build or model cannot do what was asked; the text says what would work.
    #[error("{0}")]
    Unsupported(String),
    /// A configuration value (flag, config.json field) is wrong; the text names it and what would be right.
    #[error("{0}")]
    Config(String),
    /// A checkpoint file is missing, damaged or contradicts the configuration; the text names file and tensor.
    #[error("{0}")]
    Checkpoint(String),
    /// The operating system refused a file or a mapping.
    #[error("{path}: {reason}")]
    Io { path: String, reason: String },
}

/// Result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An [`Error::Io`] from a path and the operating system's answer.
    pub fn io(path: impl AsRef<std::path::Path>, e: std::io::Error) -> Self {
        Error::Io { path: path.as_ref().display().to_string(), reason: e.to_string() }
    }
}
