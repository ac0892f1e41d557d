//! Everything with strings or sockets: CLI, HTTP, templates, tokenizers, benches.

pub mod chat;
pub mod cli;
pub mod text;
