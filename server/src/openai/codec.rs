//! Text to ids and back, as the endpoints need it. The server's tokenizer implements these; tests bring a small
//! one whose every answer is known.

use crate::text::detokenize::DecodeOptions;

/// A tokenizer.
pub trait Codec: Send + Sync {
    /// Ids of `text`; with the tokenizer's own beginning and end marks when asked for.
    ///
    /// # Errors
    /// One sentence for the client.
    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, String>;
    /// Most characters of a text that one token stands for; `None` without a bound.
    fn longest_token_chars(&self) -> Option<usize>;
    /// Text of `ids`; bytes that are no UTF-8 give U+FFFD.
    fn decode(&self, ids: &[u32], options: DecodeOptions) -> String;
    /// The token as it stands in the vocabulary (`Ġthe`); `None` when there is no such id.
    fn token(&self, id: u32) -> Option<String>;
    /// The bytes that the token adds to the text; may end inside a character.
    fn token_bytes(&self, id: u32) -> Vec<u8>;
    /// Turns an answer's ids into text as they come. `prompt` is what the answer continues.
    fn detokenizer(&self, prompt: &[u32], options: DecodeOptions) -> Box<dyn Detokenize>;
}

/// One answer on its way from ids to text.
pub trait Detokenize: Send {
    /// Takes one id and appends the text that is now certain; an incomplete character is held back.
    fn push(&mut self, id: u32, out: &mut String);
    /// Appends what is still held back, at the end of the answer.
    fn finish(&mut self, out: &mut String);
}
