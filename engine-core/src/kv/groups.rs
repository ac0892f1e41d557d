//! Groups of layers that share one page table, and how many pages a sequence needs in them.

use crate::backend::{KvGroupSpec, KvKind};
use crate::{Error, Result};

/// How far back the attention of a group's layers looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupKind {
    /// Every earlier position.
    Full,
    /// The query at position p reads positions `p + 1 - tokens ..= p`.
    Window { tokens: u32 },
}

/// One group of layers with one page table per row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupSpec {
    pub kind: GroupKind,
    /// Positions one page of this group holds; at least 1.
    pub page_tokens: u32,
}

impl GroupSpec {
    /// The part of a backend's group that decides about pages.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for groups that are not pages of positions.
    pub fn of(spec: &KvGroupSpec) -> Result<Self> {
        let kind = match spec.kind {
            KvKind::Full | KvKind::Latent => GroupKind::Full,
            KvKind::Window { tokens } => GroupKind::Window { tokens },
            KvKind::State { .. } | KvKind::Cross => {
                return Err(Error::Unsupported(format!(
                    "a KV group of kind {:?}: pages are given to full, latent and window attention only",
                    spec.kind
                )));
            }
        };
        Ok(GroupSpec { kind, page_tokens: spec.page_tokens })
    }

    /// First position that the query at `position` still reads.
    pub fn first_read(&self, position: u32) -> u32 {
        match self.kind {
            GroupKind::Full => 0,
            GroupKind::Window { tokens } => (position + 1).saturating_sub(tokens),
        }
    }

    /// Most pages that a sequence of `tokens` positions holds at one time when no step computes more than `chunk`
    /// of them.
    pub fn most_pages(&self, tokens: u32, chunk: u32) -> u32 {
        let whole = tokens.div_ceil(self.page_tokens);
        match self.kind {
            GroupKind::Full => whole,
            GroupKind::Window { tokens: window } => {
                let span = u64::from(window) - 1 + u64::from(chunk.min(tokens).max(1));
                whole.min(u32::try_from(span.div_ceil(u64::from(self.page_tokens)) + 1).unwrap_or(u32::MAX))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against a count of the pages that hold a position which some chunk reads or writes.
    #[test]
    fn most_pages_is_an_upper_bound_and_close() {
        for (window, page_tokens, chunk, tokens) in
            (1..9).flat_map(|w| (1..6).flat_map(move |p| (1..7).map(move |c| (w, p, c, 40))))
        {
            let group = GroupSpec { kind: GroupKind::Window { tokens: window }, page_tokens };
            let held = |start: u32| {
                let (first, last) =
                    (group.first_read(start) / page_tokens, (start + chunk - 1) / page_tokens);
                last - first + 1
            };
            let most = (0..=tokens - chunk).map(held).max().unwrap_or(0);
            let bound = group.most_pages(tokens, chunk);
            assert!(
                (most..=most + 1).contains(&bound),
                "{group:?} chunk {chunk}: {most} pages, bound {bound}"
            );
        }
        let full = GroupSpec { kind: GroupKind::Full, page_tokens: 16 };
        assert_eq!((full.most_pages(0, 8), full.most_pages(1, 8), full.most_pages(33, 8)), (0, 1, 3));
    }

    #[test]
    fn a_window_starts_where_its_last_query_still_reads() {
        let group = |kind| GroupSpec { kind, page_tokens: 4 };
        assert_eq!(group(GroupKind::Full).first_read(100), 0);
        assert_eq!(group(GroupKind::Window { tokens: 10 }).first_read(8), 0);
        assert_eq!(group(GroupKind::Window { tokens: 10 }).first_read(10), 1);
    }
}
