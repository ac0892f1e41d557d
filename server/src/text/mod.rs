//! Text and tokens: tokenizers, incremental detokenizing, stop strings.
