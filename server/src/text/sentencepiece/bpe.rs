//! SentencePiece's BPE: of all neighbours whose union is a piece, the one with the best score merges first, the
//! leftmost of equals.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use super::proto::{Piece, PieceKind};
use crate::text::trie::Trie;

/// Cuts `text` into pieces with their ids; `None` is text outside the vocabulary.
pub(super) fn encode<'t>(
    text: &'t str,
    by_text: &HashMap<String, u32>,
    pieces: &[Piece],
    user_defined: &Trie,
) -> Vec<(&'t str, Option<u32>)> {
    let mut symbols = initial_symbols(text, user_defined);
    let mut merger = Merger { text, by_text, pieces, unused_cuts: HashMap::new() };
    let mut agenda: BinaryHeap<Candidate> =
        (1..symbols.len()).filter_map(|right| merger.candidate(&symbols, right - 1, right)).collect();
    while let Some(Candidate { left, right, end, .. }) = agenda.pop() {
        let stale = symbols[left].is_gone() || symbols[right].is_gone();
        if stale || symbols[left].end != symbols[right].start || symbols[right].end != end {
            continue;
        }
        symbols[left].end = end;
        symbols[left].next = symbols[right].next;
        symbols[right].end = symbols[right].start;
        if let Some(next) = symbols[left].next {
            symbols[next].previous = Some(left);
            agenda.extend(merger.candidate(&symbols, left, next));
        }
        if let Some(previous) = symbols[left].previous {
            agenda.extend(merger.candidate(&symbols, previous, left));
        }
    }
    let mut out = Vec::with_capacity(symbols.len());
    for symbol in symbols.iter().filter(|symbol| !symbol.is_gone()) {
        merger.emit(&text[symbol.start..symbol.end], &mut out);
    }
    out
}

#[derive(Debug, Clone, Copy)]
struct Symbol {
    start: usize,
    end: usize,
    previous: Option<usize>,
    next: Option<usize>,
    /// A user-defined symbol never merges.
    frozen: bool,
}

impl Symbol {
    fn is_gone(&self) -> bool {
        self.start == self.end
    }
}

fn initial_symbols(text: &str, user_defined: &Trie) -> Vec<Symbol> {
    let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len());
    let mut start = 0;
    while start < text.len() {
        let matched = user_defined.longest_prefix(&text.as_bytes()[start..]);
        let one_char = text[start..].chars().next().map_or(1, char::len_utf8);
        let end = start + matched.map_or(one_char, |(length, _)| length);
        let index = symbols.len();
        symbols.push(Symbol {
            start,
            end,
            previous: index.checked_sub(1),
            next: (end < text.len()).then_some(index + 1),
            frozen: matched.is_some(),
        });
        start = end;
    }
    symbols
}

/// Two neighbouring symbols whose union is a piece.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    score: f32,
    left: usize,
    right: usize,
    end: usize,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

struct Merger<'m> {
    text: &'m str,
    by_text: &'m HashMap<String, u32>,
    pieces: &'m [Piece],
    /// How unused pieces came about, so that they can be cut again: length of the left half.
    unused_cuts: HashMap<&'m str, usize>,
}

impl<'m> Merger<'m> {
    fn candidate(&mut self, symbols: &[Symbol], left: usize, right: usize) -> Option<Candidate> {
        let (l, r) = (&symbols[left], &symbols[right]);
        if l.frozen || r.frozen {
            return None;
        }
        let text = &self.text[l.start..r.end];
        let piece = &self.pieces[*self.by_text.get(text)? as usize];
        if piece.kind == PieceKind::Unused {
            self.unused_cuts.insert(text, l.end - l.start);
        }
        Some(Candidate { score: piece.score, left, right, end: r.end })
    }

    /// Appends a finished symbol; an unused piece falls apart into what it was merged from, over and over.
    fn emit<'t>(&self, symbol: &'t str, out: &mut Vec<(&'t str, Option<u32>)>) {
        let id = self.by_text.get(symbol).copied();
        let is_unused = id.is_some_and(|id| self.pieces[id as usize].kind == PieceKind::Unused);
        match self.unused_cuts.get(symbol).filter(|_| is_unused) {
            Some(&cut) => {
                self.emit(&symbol[..cut], out);
                self.emit(&symbol[cut..], out);
            }
            None => out.push((symbol, id)),
        }
    }
}
