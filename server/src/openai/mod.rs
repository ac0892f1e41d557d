//! The OpenAI-compatible endpoints, one file each, and what they share.

pub mod answer;
pub mod chat;
mod chunk;
pub mod codec;
pub mod completions;
mod conversation;
mod fields;
mod generation;
mod logprobs;
pub mod models;
mod prompt;
mod request;
pub mod sampling;
mod tally;
pub mod tokenize;
pub mod types;
