//! Byte-level BPE from `vocab.json` and `merges.txt`, as GPT-2 and Qwen2 publish it.

use std::path::Path;

use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{SplitDelimiterBehavior, Tokenizer};

use super::TokenizerError;
use super::settings::Settings;

/// How Qwen2 cuts text before merging: like GPT-4, but digits one by one.
pub(super) const QWEN2_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Reads the two files; added tokens are left to the caller.
pub(super) fn load(directory: &Path, settings: &Settings) -> Result<Tokenizer, TokenizerError> {
    let failed = |error: tokenizers::Error| TokenizerError::File {
        path: directory.join("vocab.json").display().to_string(),
        reason: format!("vocab.json and merges.txt do not make a BPE tokenizer: {error}"),
    };
    let path = |file: &str| directory.join(file).to_string_lossy().into_owned();
    let model = BPE::from_file(&path("vocab.json"), &path("merges.txt")).build().map_err(failed)?;
    let mut tokenizer = Tokenizer::new(model);
    let add_prefix_space = settings.add_prefix_space.unwrap_or(false);
    if settings.class.starts_with("Qwen2") {
        tokenizer.with_normalizer(Some(NFC)).map_err(failed)?;
        let pattern = SplitPattern::Regex(QWEN2_PATTERN.into());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(failed)?;
        let byte_level = ByteLevel::new(add_prefix_space, false, false);
        tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![
            PreTokenizerWrapper::Split(split),
            PreTokenizerWrapper::ByteLevel(byte_level),
        ])));
    } else {
        tokenizer.with_pre_tokenizer(Some(ByteLevel::new(add_prefix_space, true, true)));
    }
    tokenizer.with_decoder(Some(ByteLevel::default()));
    Ok(tokenizer)
}
