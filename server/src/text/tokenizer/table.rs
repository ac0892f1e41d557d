//! What each token id decodes to, as bytes, so that decoding is a copy.

use serde_json::Value as Json;

use crate::text::sentencepiece::{SPACE_SYMBOL, byte_of_piece};

/// How ids become text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decoding {
    /// Every id has its bytes, whatever its neighbours: byte-level BPE and SentencePiece.
    Bytes { leading: Leading, invalid: Invalid },
    /// What an id becomes depends on its neighbours (WordPiece and its like): windows are decoded as a whole.
    Windowed,
}

/// What happens to white space at the start of the whole text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leading {
    /// Nothing.
    Keep,
    /// One space goes: SentencePiece's dummy prefix.
    StripOneSpace,
    /// The first token's spaces go: the `Metaspace` decoder.
    StripFirstToken,
}

/// What bytes that are no UTF-8 become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Invalid {
    /// One U+FFFD for a broken sequence, as [`String::from_utf8_lossy`] does.
    PerSequence,
    /// One U+FFFD for each byte, as SentencePiece does.
    PerByte,
}

/// What is known of one id.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct TokenFlags {
    /// The id names a token.
    pub exists: bool,
    /// `skip_special_tokens` leaves it out.
    pub special: bool,
    /// It is an added token.
    pub added: bool,
}

/// Bytes and flags of every id.
#[derive(Debug, Default)]
pub(crate) struct TokenTable {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    flags: Vec<TokenFlags>,
}

impl TokenTable {
    /// Appends the next id.
    pub fn push(&mut self, bytes: &[u8], flags: TokenFlags) {
        self.bytes.extend_from_slice(bytes);
        self.ends.push(self.bytes.len());
        self.flags.push(flags);
    }

    /// The bytes of `id`; none for an id without a token.
    pub fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let start = id.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        self.ends.get(id).and_then(|end| self.bytes.get(start..*end)).unwrap_or_default()
    }

    /// The flags of `id`.
    pub fn flags(&self, id: u32) -> TokenFlags {
        self.flags.get(id as usize).copied().unwrap_or_default()
    }

    /// One more than the largest id.
    pub fn len(&self) -> usize {
        self.ends.len()
    }
}

impl Decoding {
    /// Reads the `decoder` of a tokenizer.json.
    pub fn of_decoder(decoder: &Json) -> Self {
        let mut steps = Vec::new();
        flatten(decoder, &mut steps);
        let kinds: Vec<&str> = steps.iter().map(|step| step["type"].as_str().unwrap_or_default()).collect();
        let bytes = |leading, invalid| Self::Bytes { leading, invalid };
        match kinds.as_slice() {
            ["ByteLevel"] => bytes(Leading::Keep, Invalid::PerSequence),
            ["Metaspace"] | ["ByteFallback", "Metaspace"] | ["Metaspace", "ByteFallback", "Fuse"] => {
                let metaspace = steps.iter().find(|step| step["type"] == "Metaspace");
                let of = |name: &str| metaspace.and_then(|step| step.get(name));
                let keeps = of("prepend_scheme").is_some_and(|scheme| scheme == "never")
                    || of("add_prefix_space").is_some_and(|add| add == false);
                match of("replacement").is_some_and(|mark| mark == "▁") {
                    true => {
                        bytes(if keeps { Leading::Keep } else { Leading::StripFirstToken }, Invalid::PerByte)
                    }
                    false => Self::Windowed,
                }
            }
            ["Replace", rest @ ..] if replaces_space_symbol(steps[0]) => match rest {
                [] | ["Fuse"] | ["ByteFallback"] | ["ByteFallback", "Fuse"] => {
                    bytes(Leading::Keep, Invalid::PerByte)
                }
                ["ByteFallback", "Fuse", "Strip"] | ["Fuse", "Strip"]
                    if strips_one_space(steps[kinds.len() - 1]) =>
                {
                    bytes(Leading::StripOneSpace, Invalid::PerByte)
                }
                _ => Self::Windowed,
            },
            _ => Self::Windowed,
        }
    }
}

/// The bytes of a token of a byte-level vocabulary (GPT-2's map of bytes to printable characters). A token with
/// any other character stands for its own UTF-8.
pub(crate) fn byte_level_bytes(token: &str) -> Vec<u8> {
    let mapped: Option<Vec<u8>> = token.chars().map(byte_of_char).collect();
    mapped.unwrap_or_else(|| token.as_bytes().to_vec())
}

/// The bytes of a SentencePiece piece.
pub(crate) fn piece_bytes(piece: &str) -> Vec<u8> {
    match byte_of_piece(piece) {
        Some(byte) => vec![byte],
        None => piece.replace(SPACE_SYMBOL, " ").into_bytes(),
    }
}

/// GPT-2 shows the bytes that are printable in Latin-1 as themselves and the others from U+0100 on, in order.
fn byte_of_char(c: char) -> Option<u8> {
    let is_shown = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let code = u32::from(c);
    match u8::try_from(code) {
        Ok(byte) => is_shown(byte).then_some(byte),
        Err(_) => {
            let index = usize::try_from(code - 0x100).ok()?;
            (0..=u8::MAX).filter(|byte| !is_shown(*byte)).nth(index)
        }
    }
}

fn flatten<'j>(decoder: &'j Json, steps: &mut Vec<&'j Json>) {
    match decoder.get("decoders").and_then(Json::as_array) {
        Some(parts) => parts.iter().for_each(|part| flatten(part, steps)),
        None => steps.push(decoder),
    }
}

fn replaces_space_symbol(step: &Json) -> bool {
    step["pattern"]["String"] == "▁" && step["content"] == " "
}

fn strips_one_space(step: &Json) -> bool {
    step["content"] == " " && step["start"] == 1 && step["stop"] == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_level_map_covers_every_byte() {
        assert_eq!(byte_level_bytes("ĠhelloĊ"), b" hello\n");
        let mut seen: Vec<u8> = ('\0'..'\u{200}').filter_map(byte_of_char).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..=255).collect::<Vec<u8>>());
        assert_eq!(byte_level_bytes("<｜User｜>"), "<｜User｜>".as_bytes());
    }

    #[test]
    fn table_gives_back_what_was_put_in() {
        let mut table = TokenTable::default();
        table.push(b"ab", TokenFlags { exists: true, ..Default::default() });
        table.push(b"", TokenFlags::default());
        table.push(b"c", TokenFlags { exists: true, special: true, added: true });
        assert_eq!([0, 1, 2, 3].map(|id| table.bytes(id)), [&b"ab"[..], b"", b"c", b""]);
        assert!(table.flags(2).special && !table.flags(9).exists);
        assert_eq!(table.len(), 3);
    }
}
