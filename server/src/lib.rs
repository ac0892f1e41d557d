//! Everything with strings or sockets: CLI, HTTP, templates, tokenizers, benches.

pub mod cli;
