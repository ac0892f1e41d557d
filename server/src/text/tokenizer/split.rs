//! Finds added tokens in text, leftmost first, the longest of those that start at one place.

use super::settings::AddedToken;
use crate::text::trie::Trie;

/// A text cut at its added tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Segment<'t> {
    /// Ordinary text, never empty.
    Text(&'t str),
    /// An added token.
    Token(u32),
}

#[derive(Debug)]
pub(super) struct Splitter {
    trie: Trie,
    tokens: Vec<(u32, AddedToken)>,
    /// Which bytes begin an added token.
    first_bytes: [bool; 256],
}

impl Splitter {
    pub fn new(tokens: Vec<(u32, AddedToken)>) -> Self {
        let mut first_bytes = [false; 256];
        for byte in tokens.iter().filter_map(|(_, token)| token.content.bytes().next()) {
            first_bytes[byte as usize] = true;
        }
        let trie =
            Trie::new(tokens.iter().zip(0..).map(|((_, token), index)| (token.content.as_str(), index)));
        Self { trie, tokens, first_bytes }
    }

    pub fn split<'t>(&self, text: &'t str) -> Vec<Segment<'t>> {
        let mut segments = Vec::new();
        let mut text_start = 0;
        let mut at = 0;
        while let Some(offset) =
            text.as_bytes()[at..].iter().position(|byte| self.first_bytes[*byte as usize])
        {
            at += offset;
            let Some((length, id, token)) = self.token_at(text, at) else {
                at += 1;
                continue;
            };
            let before = &text[text_start..at];
            let before = if token.lstrip { before.trim_end() } else { before };
            if !before.is_empty() {
                segments.push(Segment::Text(before));
            }
            segments.push(Segment::Token(id));
            at += length;
            if token.rstrip {
                at += text[at..].len() - text[at..].trim_start().len();
            }
            text_start = at;
        }
        if text_start < text.len() {
            segments.push(Segment::Text(&text[text_start..]));
        }
        segments
    }

    fn token_at(&self, text: &str, at: usize) -> Option<(usize, u32, &AddedToken)> {
        let (length, index) = self.trie.longest_prefix(&text.as_bytes()[at..])?;
        let (id, token) = self.tokens.get(index as usize)?;
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let touches = text[..at].chars().next_back().is_some_and(is_word)
            || text[at + length..].chars().next().is_some_and(is_word);
        (!(token.single_word && touches)).then_some((length, *id, token))
    }
}

#[cfg(test)]
mod tests {
    use super::Segment::{Text, Token};
    use super::*;

    #[test]
    fn text_is_cut_at_added_tokens() {
        let mut strip = AddedToken::plain("<mask>", true);
        (strip.lstrip, strip.rstrip) = (true, true);
        let mut word = AddedToken::plain("end", false);
        word.single_word = true;
        let tokens = [AddedToken::plain("<s>", true), AddedToken::plain("<s>>", true), strip, word];
        let splitter = Splitter::new((10..).zip(tokens).collect());
        let cases: [(&str, &[Segment]); 7] = [
            ("", &[]),
            ("a<b", &[Text("a<b")]),
            ("<s>é<s>", &[Token(10), Text("é"), Token(10)]),
            ("x<s>>y", &[Text("x"), Token(11), Text("y")]),
            ("a  <mask> \n b", &[Text("a"), Token(12), Text("b")]),
            ("the end, bend", &[Text("the "), Token(13), Text(", bend")]),
            ("<s", &[Text("<s")]),
        ];
        for (text, expected) in cases {
            assert_eq!(splitter.split(text), expected, "{text}");
        }
    }
}
