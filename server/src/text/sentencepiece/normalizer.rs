//! SentencePiece's normalizer: the character map of the model (a Darts double array), white space, dummy prefix.

use super::proto::Model;
use super::{Place, SPACE_SYMBOL};
use crate::text::trie::Trie;

#[derive(Debug)]
pub(super) struct Normalizer {
    charsmap: Option<CharsMap>,
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
    space: char,
    whitespace_as_suffix: bool,
}

impl Normalizer {
    pub fn new(model: &Model) -> Result<Self, String> {
        Ok(Self {
            charsmap: (!model.charsmap.is_empty()).then(|| CharsMap::parse(&model.charsmap)).transpose()?,
            add_dummy_prefix: model.add_dummy_prefix,
            remove_extra_whitespaces: model.remove_extra_whitespaces,
            space: if model.escape_whitespaces { SPACE_SYMBOL } else { ' ' },
            whitespace_as_suffix: model.whitespace_as_suffix,
        })
    }

    /// Whether every character comes out as one.
    pub fn keeps_text(&self) -> bool {
        self.charsmap.is_none() && !self.remove_extra_whitespaces
    }

    /// `text` as the model's algorithm wants it. User-defined symbols pass unchanged.
    pub fn normalize(&self, text: &str, user_defined: &Trie, place: Place) -> String {
        let mut rest = text;
        if self.remove_extra_whitespaces {
            while let (" ", taken) = self.step(rest, user_defined) {
                rest = &rest[taken..];
            }
        }
        let mut out = String::with_capacity(rest.len() + rest.len() / 4 + 4);
        if rest.is_empty() {
            return out;
        }
        let with_prefix = self.add_dummy_prefix && place == Place::Start;
        if with_prefix && !self.whitespace_as_suffix {
            out.push(self.space);
        }
        let mut after_space = self.remove_extra_whitespaces;
        while !rest.is_empty() {
            let (mut text, taken) = self.step(rest, user_defined);
            if after_space {
                text = text.trim_start_matches(' ');
            }
            if !text.is_empty() {
                out.extend(text.chars().map(|c| if c == ' ' { self.space } else { c }));
                after_space = self.remove_extra_whitespaces && text.ends_with(' ');
            }
            rest = &rest[taken..];
        }
        if self.remove_extra_whitespaces {
            out.truncate(out.trim_end_matches(self.space).len());
        }
        if with_prefix && self.whitespace_as_suffix {
            out.push(self.space);
        }
        out
    }

    /// What the start of `text` becomes, and how many bytes of it that takes.
    fn step<'t>(&'t self, text: &'t str, user_defined: &Trie) -> (&'t str, usize) {
        if let Some((length, _)) = user_defined.longest_prefix(text.as_bytes()) {
            return (&text[..length], length);
        }
        if let Some(found) = self.charsmap.as_ref().and_then(|map| map.longest(text)) {
            return found;
        }
        let length = text.chars().next().map_or(0, char::len_utf8);
        (&text[..length], length)
    }
}

/// `precompiled_charsmap`: a Darts double array of sources, and their replacements, each ended by a zero byte.
#[derive(Debug)]
struct CharsMap {
    units: Vec<u32>,
    replacements: String,
}

impl CharsMap {
    fn parse(blob: &[u8]) -> Result<Self, String> {
        let broken = || "its character map is damaged".to_owned();
        let (size, rest) = blob.split_first_chunk::<4>().ok_or_else(broken)?;
        let size = u32::from_le_bytes(*size) as usize;
        let (units, replacements) =
            rest.split_at_checked(size).filter(|_| size.is_multiple_of(4)).ok_or_else(broken)?;
        Ok(Self {
            units: units.chunks_exact(4).map(|u| u32::from_le_bytes([u[0], u[1], u[2], u[3]])).collect(),
            replacements: String::from_utf8(replacements.to_vec()).map_err(|_| broken())?,
        })
    }

    /// The replacement of the longest source that `text` starts with, and that source's length.
    fn longest(&self, text: &str) -> Option<(&str, usize)> {
        let offset = |unit: u32| ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize;
        let mut node = offset(*self.units.first()?);
        let mut found = None;
        for (index, byte) in text.bytes().enumerate() {
            node ^= usize::from(byte);
            let Some(&unit) = self.units.get(node) else { break };
            if unit & (1 << 31 | 0xff) != u32::from(byte) {
                break;
            }
            node ^= offset(unit);
            if unit >> 8 & 1 == 1 {
                let value = self.units.get(node).map(|leaf| leaf & 0x7fff_ffff);
                found = value.map(|value| (value as usize, index + 1)).or(found);
            }
        }
        let (start, length) = found.filter(|(_, length)| text.is_char_boundary(*length))?;
        let tail = self.replacements.get(start..)?;
        Some((tail.split('\0').next().unwrap_or(tail), length))
    }
}
