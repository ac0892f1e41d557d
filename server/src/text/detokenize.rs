//! Ids to text, one at a time: the deltas, joined, are what decoding all ids at once gives.
//!
//! Where every id has its own bytes (byte-level BPE, SentencePiece) a token costs a copy of its bytes and a UTF-8 check
//! of what is new; a character cut over several tokens waits for its last byte. Other decoders (WordPiece and its
//! like) see a window: the tokens of the last delta, for context, and those after it.

use std::sync::Arc;

use super::tokenizer::{Decoding, Invalid, Leading, Tokenizer};

/// Tokens of a [`Decoding::Windowed`] tokenizer that wait at most for a character to be complete.
const MAX_WINDOW_TOKENS: usize = 16;
/// Tokens of a prompt in which the start of an unfinished character is looked for.
const PROMPT_TAIL_TOKENS: usize = 4;

/// How ids become text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeOptions {
    /// Leaves special tokens out of the text.
    pub skip_special_tokens: bool,
    /// Keeps the space that some decoders put between neighbouring added tokens.
    pub spaces_between_special_tokens: bool,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        Self { skip_special_tokens: true, spaces_between_special_tokens: true }
    }
}

/// Turns the ids of one sequence into text as they come.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    state: State,
}

impl Detokenizer {
    /// For a text that starts with the first id pushed.
    pub fn new(tokenizer: Arc<Tokenizer>, options: DecodeOptions) -> Self {
        Self { tokenizer, state: State::new(options) }
    }

    /// For a text that goes on after `prompt`: the first token keeps its leading space, and a character that the
    /// prompt left unfinished is finished.
    pub fn after_prompt(tokenizer: Arc<Tokenizer>, prompt: &[u32], options: DecodeOptions) -> Self {
        let mut state = State::new(options);
        state.prime(&tokenizer, prompt);
        Self { tokenizer, state }
    }

    /// Appends to `out` the text that `id` makes certain; may be empty.
    pub fn push(&mut self, id: u32, out: &mut String) {
        self.state.push(&self.tokenizer, id, out);
    }

    /// Appends to `out` what was held back: U+FFFD for a character that never became complete.
    pub fn finish(&mut self, out: &mut String) {
        self.state.finish(&self.tokenizer, out);
    }
}

/// The text of `ids` as a whole.
pub(super) fn decode(tokenizer: &Tokenizer, ids: &[u32], options: DecodeOptions) -> String {
    let mut state = State::new(options);
    let mut out = String::new();
    for id in ids {
        state.push(tokenizer, *id, &mut out);
    }
    state.finish(tokenizer, &mut out);
    out
}

#[derive(Debug, Clone)]
struct State {
    options: DecodeOptions,
    at_start: bool,
    /// Bytes of an unfinished character.
    pending: Vec<u8>,
    window: Vec<u32>,
    /// How much of the window's text is out, in bytes.
    window_out: usize,
    /// How many ids of the window are context.
    window_context: usize,
}

impl State {
    fn new(options: DecodeOptions) -> Self {
        Self {
            options,
            at_start: true,
            pending: Vec::new(),
            window: Vec::new(),
            window_out: 0,
            window_context: 0,
        }
    }

    fn prime(&mut self, tokenizer: &Tokenizer, prompt: &[u32]) {
        let shown = |id: &&u32| tokenizer.is_token(**id) && !self.is_skipped(tokenizer, **id);
        let mut tail: Vec<u32> =
            prompt.iter().rev().filter(shown).take(PROMPT_TAIL_TOKENS).copied().collect();
        tail.reverse();
        self.at_start = tail.is_empty();
        match tokenizer.decoding() {
            Decoding::Bytes { .. } => {
                let bytes: Vec<u8> =
                    tail.iter().flat_map(|id| tokenizer.table().bytes(*id)).copied().collect();
                self.pending = unfinished_tail(&bytes).to_vec();
            }
            Decoding::Windowed => {
                self.window_out = tokenizer.decode_window(&tail).len();
                self.window_context = tail.len();
                self.window = tail;
            }
        }
    }

    fn is_skipped(&self, tokenizer: &Tokenizer, id: u32) -> bool {
        self.options.skip_special_tokens && tokenizer.is_special(id)
    }

    fn push(&mut self, tokenizer: &Tokenizer, id: u32, out: &mut String) {
        if self.is_skipped(tokenizer, id) || !tokenizer.is_token(id) {
            return;
        }
        match tokenizer.decoding() {
            Decoding::Bytes { leading, invalid } => {
                let bytes = self.without_leading_space(tokenizer.table().bytes(id), leading);
                match leading == Leading::StripFirstToken && std::mem::take(&mut self.at_start) {
                    true => self.push_bytes(&without_spaces(bytes), invalid, out),
                    false => self.push_bytes(bytes, invalid, out),
                }
            }
            Decoding::Windowed => self.push_window(tokenizer, id, out),
        }
    }

    fn without_leading_space<'b>(&mut self, bytes: &'b [u8], leading: Leading) -> &'b [u8] {
        if leading != Leading::StripOneSpace || !self.at_start || bytes.is_empty() {
            return bytes;
        }
        self.at_start = false;
        bytes.strip_prefix(b" ").unwrap_or(bytes)
    }

    fn push_bytes(&mut self, bytes: &[u8], invalid: Invalid, out: &mut String) {
        if let Ok(text) = std::str::from_utf8(bytes)
            && self.pending.is_empty()
        {
            out.push_str(text);
            return;
        }
        self.pending.extend_from_slice(bytes);
        let mut rest = self.pending.as_slice();
        loop {
            let error = match std::str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    self.pending.clear();
                    return;
                }
                Err(error) => error,
            };
            let (valid, after) = rest.split_at(error.valid_up_to());
            out.push_str(std::str::from_utf8(valid).unwrap_or_default());
            let Some(broken) = error.error_len() else {
                let kept = self.pending.len() - after.len();
                self.pending.drain(..kept);
                return;
            };
            push_replacements(broken, invalid, out);
            rest = &after[broken..];
        }
    }

    fn push_window(&mut self, tokenizer: &Tokenizer, id: u32, out: &mut String) {
        let added = |id: u32| tokenizer.table().flags(id).added;
        if !self.options.spaces_between_special_tokens
            && added(id)
            && self.window.last().is_some_and(|last| added(*last))
        {
            self.flush_window(tokenizer, out);
            out.push_str(&tokenizer.token_string(id).unwrap_or_default());
            self.restart_window(tokenizer, vec![id]);
            return;
        }
        self.window.push(id);
        let text = tokenizer.decode_window(&self.window);
        let waiting = self.window.len() - self.window_context;
        let unfinished = text.len() <= self.window_out || text.ends_with(char::REPLACEMENT_CHARACTER);
        if unfinished && waiting < MAX_WINDOW_TOKENS {
            return;
        }
        out.push_str(text.get(self.window_out..).unwrap_or_default());
        let context = self.window.split_off(self.window_context);
        self.restart_window(tokenizer, context);
    }

    fn restart_window(&mut self, tokenizer: &Tokenizer, context: Vec<u32>) {
        self.window_out = tokenizer.decode_window(&context).len();
        self.window_context = context.len();
        self.window = context;
    }

    fn flush_window(&mut self, tokenizer: &Tokenizer, out: &mut String) {
        if self.window.len() > self.window_context {
            out.push_str(tokenizer.decode_window(&self.window).get(self.window_out..).unwrap_or_default());
            let context = self.window.split_off(self.window_context);
            self.restart_window(tokenizer, context);
        }
    }

    fn finish(&mut self, tokenizer: &Tokenizer, out: &mut String) {
        match tokenizer.decoding() {
            Decoding::Bytes { invalid, .. } if !self.pending.is_empty() => {
                push_replacements(self.pending.len(), invalid, out);
                self.pending.clear();
            }
            Decoding::Bytes { .. } => {}
            Decoding::Windowed => self.flush_window(tokenizer, out),
        }
    }
}

fn push_replacements(broken_bytes: usize, invalid: Invalid, out: &mut String) {
    let count = if invalid == Invalid::PerByte { broken_bytes } else { 1 };
    out.extend(std::iter::repeat_n(char::REPLACEMENT_CHARACTER, count));
}

fn without_spaces(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().copied().filter(|byte| *byte != b' ').collect()
}

/// The start of a character at the end of `bytes` that more bytes could finish.
fn unfinished_tail(bytes: &[u8]) -> &[u8] {
    let start = bytes.iter().rposition(|byte| byte & 0xc0 != 0x80).unwrap_or(bytes.len());
    let tail = &bytes[start..];
    match std::str::from_utf8(tail) {
        Err(error) if error.valid_up_to() == 0 && error.error_len().is_none() => tail,
        _ => &[],
    }
}

#[cfg(test)]
mod tests;
