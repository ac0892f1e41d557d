//! `pallium bench make-checkpoint`: random weights of a config.json's shape as real files.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use engine_core::DType;
use engine_core::config::{ModelConfig, read_json};
use engine_core::loader::shapes::decoder_tensors;
use engine_core::loader::write::{WriteOptions, make_checkpoint};

use crate::cli::MakeCheckpointArgs;
use crate::cli::progress::Progress;
use crate::cli::startup::human_size;
use crate::model::StartError;

/// Files beside config.json that make a checkpoint servable; those that are there are copied.
const COMPANIONS: [&str; 9] = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
];

/// Writes the checkpoint and says on standard output what was written.
///
/// # Errors
/// No config.json, an architecture that is not known, a directory that has a checkpoint already, a full disk.
pub fn run(args: &MakeCheckpointArgs) -> Result<(), StartError> {
    let file = config_file(&args.model)?;
    let json = read_json(&file)?;
    let config = ModelConfig::from_json(json.clone())?;
    let dtype = args.dtype.or(config.dtype).unwrap_or(DType::Bf16);
    let elements: u64 = decoder_tensors(&config)?.iter().map(|t| t.len()).sum();
    let options = WriteOptions {
        dtype,
        seed: args.seed,
        shard_bytes: args.max_shard_bytes,
        threads: std::thread::available_parallelism().map_or(1, |n| n.get()),
    };
    let total_bytes = elements * dtype.size_bytes() as u64;
    let bar = Progress::bytes("Writing weights", total_bytes, args.logging.format);
    let written = make_checkpoint(&json, &args.output, &options, &|bytes| bar.advance(bytes));
    bar.finish();
    let written = written?;
    let copied = copy_companions(&file, &args.output)?;
    writeln!(
        std::io::stdout(),
        "{}: {} of {dtype} weights in {} files, {copied} files copied",
        args.output.display(),
        human_size(written.total_bytes),
        written.files.len(),
    )?;
    Ok(())
}

fn config_file(model: &Path) -> Result<PathBuf, StartError> {
    let file = if model.is_dir() { model.join("config.json") } else { model.to_owned() };
    if file.is_file() {
        return Ok(file);
    }
    Err(StartError::new(format!(
        "--model: {} is not there; give a config.json or its directory",
        file.display()
    )))
}

fn copy_companions(config: &Path, output: &Path) -> Result<usize, StartError> {
    let Some(dir) = config.parent() else { return Ok(0) };
    let mut copied = 0;
    for name in COMPANIONS {
        let from = dir.join(name);
        if from.is_file() {
            std::fs::copy(&from, output.join(name))
                .map_err(|e| StartError::new(format!("{}: {e}", from.display())))?;
            copied += 1;
        }
    }
    Ok(copied)
}
