//! Reading checkpoints.

pub mod mmap;

pub use mmap::HostBytes;
