//! Prompt lookup: when the last tokens of a sequence stand somewhere before, what followed there is the draft.
//!
//! Of all earlier places the one that agrees longest is taken (at most `max` tokens back, at least `min`), of several the
//! latest. A draft that runs into the sequence's own end goes on with itself, so that a loop is followed around.
//! Places are found by hash chains over `min`-grams, as LZ77 compressors do: a token is indexed once, a lookup looks at
//! no more than [`MOST_PLACES`] places.

use crate::engine::types::RequestId;

/// Longest n-gram that may be asked for.
pub const MAX_NGRAM: u32 = 64;
/// Places of one hash that a lookup visits at most.
const MOST_PLACES: u32 = 64;
/// Hashes a new row's table has room for.
const FIRST_HASHES: usize = 1024;

/// Looks up drafts for the rows of one engine.
pub(crate) struct NgramDrafter {
    min: usize,
    max: usize,
    tokens: usize,
    /// By row slot.
    rows: Vec<NgramIndex>,
    drafts: Vec<u32>,
}

impl NgramDrafter {
    /// For engines of `slots` row slots; drafts of `tokens` after n-grams of `min` to `max`.
    pub(crate) fn new(slots: u32, tokens: u32, min: u32, max: u32) -> Self {
        NgramDrafter {
            min: min as usize,
            max: max as usize,
            tokens: tokens as usize,
            rows: (0..slots).map(|_| NgramIndex::default()).collect(),
            drafts: Vec::with_capacity(tokens as usize),
        }
    }

    /// What may follow `tokens`, all that is known of the request in this slot; empty when nothing agrees.
    pub(crate) fn draft(&mut self, slot: u32, id: RequestId, tokens: &[u32]) -> &[u32] {
        let index = &mut self.rows[slot as usize];
        if index.owner != Some(id) {
            index.reset(id);
        }
        index.add(tokens, self.min);
        self.drafts.clear();
        if let Some(end) = index.find(tokens, self.min, self.max) {
            for at in end..end + self.tokens {
                let token = tokens.get(at).copied().unwrap_or_else(|| self.drafts[at - tokens.len()]);
                self.drafts.push(token);
            }
        }
        &self.drafts
    }
}

/// Where each n-gram of one sequence ends.
#[derive(Default)]
struct NgramIndex {
    owner: Option<RequestId>,
    /// By hash: the latest end of an n-gram with it; 0 is none. A power of two long.
    latest: Vec<u32>,
    /// By end: the end before it with the same hash; 0 is none.
    before: Vec<u32>,
}

impl NgramIndex {
    fn reset(&mut self, owner: RequestId) {
        self.owner = Some(owner);
        self.latest.fill(0);
        self.before.clear();
    }

    /// Indexes all n-grams but the one at the end.
    fn add(&mut self, tokens: &[u32], n: usize) {
        if self.latest.len() < tokens.len() {
            let hashes = tokens.len().next_power_of_two().max(FIRST_HASHES);
            self.latest = vec![0; hashes];
            self.before.clear();
        }
        for end in self.before.len()..tokens.len() {
            if end < n {
                self.before.push(0);
                continue;
            }
            let hash = self.hash(&tokens[end - n..end]);
            self.before.push(std::mem::replace(&mut self.latest[hash], end as u32));
        }
    }

    /// The end of the earlier place that agrees longest with the end of `tokens`.
    fn find(&self, tokens: &[u32], min: usize, max: usize) -> Option<usize> {
        let last = tokens.len().checked_sub(min)?;
        let mut end = self.latest[self.hash(&tokens[last..])] as usize;
        let mut best = None;
        for _ in 0..MOST_PLACES {
            if end == 0 {
                break;
            }
            let pairs = tokens[..end].iter().rev().zip(tokens.iter().rev());
            let agree = pairs.take(max).take_while(|(a, b)| a == b).count();
            if agree >= min && best.is_none_or(|(most, _)| agree > most) {
                best = Some((agree, end));
            }
            if agree == max {
                break;
            }
            end = self.before[end] as usize;
        }
        best.map(|(_, end)| end)
    }

    /// FNV-1a over whole ids, folded to the table.
    fn hash(&self, ngram: &[u32]) -> usize {
        let mix = |h: u64, id: &u32| (h ^ u64::from(*id)).wrapping_mul(0x100_0000_01B3);
        let h = ngram.iter().fold(0xCBF2_9CE4_8422_2325, mix);
        (h ^ (h >> 32)) as usize & (self.latest.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drafts(tokens: &[u32], min: u32, max: u32) -> Vec<u32> {
        NgramDrafter::new(1, 3, min, max).draft(0, RequestId(1), tokens).to_vec()
    }

    #[test]
    fn the_longest_agreement_wins_and_then_the_latest() {
        assert_eq!(drafts(&[1, 2, 7, 7, 7, 9, 2, 8, 8, 8, 1, 2], 1, 3), [7, 7, 7]);
        assert_eq!(drafts(&[2, 7, 7, 7, 2, 8, 8, 8, 2], 1, 3), [8, 8, 8]);
        assert_eq!(drafts(&[1, 2, 7, 7, 7, 9, 2, 8, 8, 8, 1, 2], 1, 1), [8, 8, 8]);
    }

    #[test]
    fn nothing_follows_what_is_new_or_too_short() {
        for (tokens, min) in [(&[1, 2, 3, 4][..], 1), (&[5, 2, 7, 8, 6, 2], 2), (&[5], 2), (&[], 1)] {
            assert!(drafts(tokens, min, 3).is_empty(), "{tokens:?}");
        }
    }

    #[test]
    fn a_loop_is_followed_around() {
        assert_eq!(drafts(&[4, 4], 1, 3), [4, 4, 4]);
        assert_eq!(drafts(&[1, 2, 1, 2], 2, 4), [1, 2, 1]);
    }

    /// Token by token, in slots that change hands, against a search without an index.
    #[test]
    fn the_index_finds_what_a_plain_search_finds() {
        let mut drafter = NgramDrafter::new(2, 3, 2, 5);
        for request in 0..20u64 {
            let mut x = request + 1;
            let mut tokens = Vec::new();
            while tokens.len() < 1500 {
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                tokens.push((x >> 40) as u32 % 40);
                let got = drafter.draft((request % 2) as u32, RequestId(request), &tokens).to_vec();
                let want = plain_search(&tokens, 2, 5);
                assert_eq!(got.is_empty(), want.is_none(), "{tokens:?}");
                let Some(end) = want else { continue };
                let known = tokens.len() - end;
                assert_eq!(got[..known.min(3)], tokens[end..end + known.min(3)], "request {request}");
            }
        }
    }

    fn plain_search(tokens: &[u32], min: usize, max: usize) -> Option<usize> {
        let place = |n: usize| (n..tokens.len()).rev().find(|e| tokens.ends_with(&tokens[e - n..*e]));
        (min..=max.min(tokens.len())).rev().find_map(place)
    }
}
