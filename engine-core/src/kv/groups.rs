//! Groups of layers that share one page table, and how many pages a sequence needs in them.

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
