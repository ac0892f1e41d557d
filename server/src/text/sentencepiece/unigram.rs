//! SentencePiece's unigram model: the most probable cut, by Viterbi over byte positions.

use super::proto::{Piece, PieceKind};
use crate::text::trie::Trie;

/// How much worse than the worst piece an unknown character is.
const UNKNOWN_PENALTY: f32 = 10.0;

#[derive(Debug)]
pub(super) struct Lattice {
    trie: Trie,
    scores: Vec<f32>,
    kinds: Vec<PieceKind>,
    unknown_id: u32,
    unknown_score: f32,
}

/// The best path that ends at one position.
#[derive(Debug, Clone, Copy)]
struct Best {
    start: usize,
    score: f32,
    id: u32,
}

impl Lattice {
    pub fn new(pieces: &[Piece], trie: Trie, unknown_id: u32) -> Self {
        let normal = || pieces.iter().filter(|p| p.kind == PieceKind::Normal).map(|p| p.score);
        Self {
            trie,
            scores: pieces.iter().map(|piece| piece.score).collect(),
            kinds: pieces.iter().map(|piece| piece.kind).collect(),
            unknown_id,
            unknown_score: normal().fold(f32::MAX, f32::min) - UNKNOWN_PENALTY,
        }
    }

    /// Cuts `text` into pieces with their ids; `None` is text outside the vocabulary.
    pub fn encode<'t>(&self, text: &'t str) -> Vec<(&'t str, Option<u32>)> {
        let mut best: Vec<Option<Best>> = vec![None; text.len() + 1];
        for (start, c) in text.char_indices() {
            let so_far = best[start].map_or(0.0, |path| path.score);
            let mut has_single = false;
            for (length, id) in self.trie.prefixes(&text.as_bytes()[start..]) {
                if self.kinds[id as usize] == PieceKind::Unused {
                    continue;
                }
                // A user-defined symbol has score 0, better than any log probability, so it is always taken.
                let score = self.scores[id as usize] + so_far;
                improve(&mut best[start + length], start, score, id);
                has_single |= length == c.len_utf8();
            }
            if !has_single {
                let score = self.unknown_score + so_far;
                improve(&mut best[start + c.len_utf8()], start, score, self.unknown_id);
            }
        }
        let mut pieces = Vec::new();
        let mut end = text.len();
        while let Some(path) = best[end] {
            pieces.push((&text[path.start..end], Some(path.id)));
            end = path.start;
        }
        pieces.reverse();
        pieces
    }
}

fn improve(target: &mut Option<Best>, start: usize, score: f32, id: u32) {
    if target.is_none_or(|best| score > best.score) {
        *target = Some(Best { start, score, id });
    }
}
