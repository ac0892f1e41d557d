//! The command line.

pub mod args;
pub mod args_client;
pub mod choices;

pub use args::*;
pub use args_client::*;
pub use choices::*;
