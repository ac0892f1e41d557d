//! A tokenizer without a vocabulary file: ids 0 to 255 are bytes, then two marks. With it every answer of the
//! mock engine is known, and characters of several bytes are split over tokens.

use crate::openai::codec::{Codec, Detokenize};
use crate::text::detokenize::DecodeOptions;

/// Begins a prompt when special tokens are asked for.
pub const BOS: u32 = 256;
/// Ends an answer.
pub const EOS: u32 = 257;
/// Ids there are.
pub const VOCAB_SIZE: u32 = 258;

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct ByteCodec;

impl Codec for ByteCodec {
    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, String> {
        let start = add_special_tokens.then_some(BOS);
        Ok(start.into_iter().chain(text.bytes().map(u32::from)).collect())
    }

    fn longest_token_chars(&self) -> Option<usize> {
        Some(1)
    }

    fn decode(&self, ids: &[u32], options: DecodeOptions) -> String {
        let mut bytes = Vec::with_capacity(ids.len());
        for id in ids {
            match u8::try_from(*id) {
                Ok(byte) => bytes.push(byte),
                Err(_) if options.skip_special_tokens => {}
                Err(_) => bytes.extend(self.token_bytes(*id)),
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn token(&self, id: u32) -> Option<String> {
        (id < VOCAB_SIZE).then(|| String::from_utf8_lossy(&self.token_bytes(id)).into_owned())
    }

    fn token_bytes(&self, id: u32) -> Vec<u8> {
        match id {
            BOS => b"<s>".to_vec(),
            EOS => b"</s>".to_vec(),
            _ => u8::try_from(id).into_iter().collect(),
        }
    }

    fn detokenizer(&self, _prompt: &[u32], options: DecodeOptions) -> Box<dyn Detokenize> {
        Box::new(Pieces { skip_special_tokens: options.skip_special_tokens, held: Vec::new() })
    }
}

struct Pieces {
    skip_special_tokens: bool,
    held: Vec<u8>,
}

impl Detokenize for Pieces {
    fn push(&mut self, id: u32, out: &mut String) {
        match u8::try_from(id) {
            Ok(byte) => self.held.push(byte),
            Err(_) if self.skip_special_tokens => {}
            Err(_) => self.held.extend(ByteCodec.token_bytes(id)),
        }
        match std::str::from_utf8(&self.held) {
            Ok(text) => out.push_str(text),
            Err(e) if e.error_len().is_none() => return,
            Err(_) => out.push_str(&String::from_utf8_lossy(&self.held)),
        }
        self.held.clear();
    }

    fn finish(&mut self, out: &mut String) {
        out.push_str(&String::from_utf8_lossy(&self.held));
        self.held.clear();
    }
}
