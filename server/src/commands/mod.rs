//! The commands around serving. Each takes its typed arguments and says in one sentence why it failed.

pub mod answer;
pub mod chat;
pub mod complete;
pub mod doctor;
pub mod events;
mod lines;
pub mod pull;
mod show;
mod terminal;

use std::io::Write as _;

use crate::cli::{DeviceKind, EngineArgs, SamplingArgs};
use crate::model::StartError;

/// Exit status of a command that Ctrl-C ended, as shells have it.
const INTERRUPTED: u8 = 130;

/// A line for whoever sits at the terminal, beside the answers on standard output.
fn tell(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Noise is of use to benches only.
fn refuse_null(args: &EngineArgs) -> Result<(), StartError> {
    match args.device.kind {
        DeviceKind::Null => Err(StartError::new(
            "--device null: computes nothing, so there is nothing to answer; it is for serve and bench",
        )),
        _ => Ok(()),
    }
}

/// The sampling fields that were given, for a request's body.
fn put_sampling(sampling: &SamplingArgs, body: &mut serde_json::Map<String, serde_json::Value>) {
    let floats = [
        ("temperature", sampling.temperature),
        ("top_p", sampling.top_p),
        ("min_p", sampling.min_p),
        ("frequency_penalty", sampling.frequency_penalty),
        ("presence_penalty", sampling.presence_penalty),
        ("repetition_penalty", sampling.repetition_penalty),
    ];
    for (name, value) in floats {
        if let Some(value) = value {
            body.insert(name.to_owned(), value.into());
        }
    }
    if let Some(top_k) = sampling.top_k {
        body.insert("top_k".to_owned(), top_k.into());
    }
}
