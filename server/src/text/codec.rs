//! The tokenizer as the endpoints see it.

use std::sync::Arc;

use super::detokenize::{DecodeOptions, Detokenizer};
use super::tokenizer::{AddSpecial, Tokenizer};
use crate::openai::codec::{Codec, Detokenize};

/// A [`Codec`] over a checkpoint's tokenizer.
pub struct TokenizerCodec {
    tokenizer: Arc<Tokenizer>,
}

impl TokenizerCodec {
    /// Shares the tokenizer.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        TokenizerCodec { tokenizer }
    }
}

impl Codec for TokenizerCodec {
    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, String> {
        let special = if add_special_tokens { AddSpecial::Yes } else { AddSpecial::No };
        self.tokenizer.encode(text, special).map_err(|e| e.to_string())
    }

    fn longest_token_chars(&self) -> Option<usize> {
        self.tokenizer.longest_token_chars()
    }

    fn decode(&self, ids: &[u32], options: DecodeOptions) -> String {
        self.tokenizer.decode(ids, options)
    }

    fn token(&self, id: u32) -> Option<String> {
        self.tokenizer.token_string(id)
    }

    fn token_bytes(&self, id: u32) -> Vec<u8> {
        self.tokenizer.token_bytes(id).into_owned()
    }

    fn detokenizer(&self, prompt: &[u32], options: DecodeOptions) -> Box<dyn Detokenize> {
        Box::new(Detokenizer::after_prompt(self.tokenizer.clone(), prompt, options))
    }
}

impl Detokenize for Detokenizer {
    fn push(&mut self, id: u32, out: &mut String) {
        Detokenizer::push(self, id, out);
    }

    fn finish(&mut self, out: &mut String) {
        Detokenizer::finish(self, out);
    }
}
