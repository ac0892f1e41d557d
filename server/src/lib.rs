//! Everything with strings or sockets: CLI, HTTP, templates, tokenizers, benches.

pub mod bench;
pub mod chat;
pub mod cli;
pub mod client;
pub mod commands;
pub mod demo;
pub mod device;
pub mod engine;
pub mod fanout;
pub mod gguf;
pub mod http;
pub mod hub;
pub mod local;
mod logging;
pub mod model;
pub mod openai;
mod run;
pub mod serve;
pub mod speculation;
pub mod text;

pub use run::{run, wants_colour};
