//! Text and tokens: tokenizers, incremental detokenizing, stop strings.

pub mod codec;
pub mod detokenize;
pub mod sentencepiece;
pub mod stop;
pub mod tokenizer;
mod trie;
