//! [`KvManager`]: gives rows the pages they need in every group, shares what the prefix cache knows, takes back what
//! has fallen out of a window or has ended.

use super::faults::{Planted, planted};
use super::groups::{GroupKind, GroupSpec};
use super::pages::{PagePool, Reuse};
use super::prefix::{PrefixCache, PrefixCaching, PrefixChain};
use super::siphash::Key;
use super::tables::{PageTables, TableDelta};
use super::{NULL_PAGE, Page};
use crate::limits::MAX_KV_GROUPS;
use crate::{Error, Result};

/// Entries a row's table makes room for when it starts; a longer row grows by doubling.
const RESERVED_ENTRIES: u32 = 4096;

/// The KV memory of one engine.
#[derive(Clone, Debug)]
pub struct KvConfig {
    /// Groups of layers; at least one, at most [`MAX_KV_GROUPS`].
    pub groups: Vec<GroupSpec>,
    /// Pages of the pool, the null page among them.
    pub pages: u32,
    pub prefix_caching: PrefixCaching,
    /// Key of the prefix hashes: [`super::prefix::random_key`] but in tests.
    pub hash_key: Key,
}

/// The longest prefix of a sequence that every group has cached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixHit {
    /// Positions that need not be computed.
    pub tokens: u32,
    /// Cached pages of it that nobody holds: taking them lowers the number of free pages.
    pub idle_pages: u32,
    /// All cached pages of it.
    pub pages: u32,
}

/// Pages, tables and prefix cache of one engine.
#[derive(Debug)]
pub struct KvManager {
    groups: Vec<GroupSpec>,
    /// Lane of each group in a [`PrefixChain`]: groups with equal page lengths share hashes.
    lane: Vec<usize>,
    lanes: usize,
    /// Least common multiple of the page lengths: a hit is a multiple of it.
    align: u32,
    prefix_caching: PrefixCaching,
    pool: PagePool,
    prefix: PrefixCache,
    tables: PageTables,
    /// Grows whenever a page becomes free.
    releases: u64,
    pub(crate) planted: Planted,
}

impl KvManager {
    /// Empty memory for rows in `slots` slots.
    ///
    /// # Errors
    /// [`Error::Config`] when the groups or the number of pages make no sense.
    pub fn new(config: KvConfig, slots: u32) -> Result<Self> {
        let groups = config.groups;
        check_groups(&groups)?;
        if config.pages <= groups.len() as u32 {
            return Err(Error::Config(format!(
                "the KV pool has {} pages; it needs one page that is never used and at least one for each of {} groups",
                config.pages,
                groups.len()
            )));
        }
        let mut lengths: Vec<u32> = Vec::new();
        let lane = groups.iter().map(|g| lane_of(&mut lengths, g.page_tokens)).collect();
        Ok(KvManager {
            lane,
            lanes: lengths.len(),
            align: lengths.iter().fold(1, |a, b| lcm(a, *b)),
            prefix_caching: config.prefix_caching,
            pool: PagePool::new(config.pages),
            prefix: PrefixCache::new(config.pages, config.hash_key),
            tables: PageTables::new(slots, groups.len()),
            groups,
            releases: 0,
            planted: Planted::default(),
        })
    }

    /// The groups, in table order.
    pub fn groups(&self) -> &[GroupSpec] {
        &self.groups
    }
    /// The pool, for figures and checks.
    pub fn pool(&self) -> &PagePool {
        &self.pool
    }
    /// The prefix cache, for figures and checks.
    pub fn prefix(&self) -> &PrefixCache {
        &self.prefix
    }
    /// The host's page tables, for checks.
    pub fn tables(&self) -> &PageTables {
        &self.tables
    }
    /// Changes whenever a page has become free.
    pub fn releases(&self) -> u64 {
        self.releases
    }

    /// Most pages a sequence of `tokens` holds at one time, in all groups, when no step computes more than `chunk`.
    pub fn most_pages(&self, tokens: u32, chunk: u32) -> u64 {
        self.groups.iter().map(|g| u64::from(g.most_pages(tokens, chunk))).sum()
    }

    /// Table entries of a sequence of `tokens`, in all groups, null ones among them.
    pub fn table_entries(&self, tokens: u32) -> u32 {
        self.groups.iter().map(|g| tokens.div_ceil(g.page_tokens)).sum()
    }

    /// Longest sequence that fits when it has the pool to itself.
    pub fn most_tokens(&self, chunk: u32) -> u32 {
        let (mut fits, mut too_long) = (0u32, u32::MAX);
        while too_long - fits > 1 {
            let middle = fits + (too_long - fits) / 2;
            if self.most_pages(middle, chunk) <= u64::from(self.pool.usable()) {
                fits = middle;
            } else {
                too_long = middle;
            }
        }
        fits
    }

    /// Pages the row in `slot` holds.
    pub fn held_pages(&self, slot: u32) -> u32 {
        (0..self.groups.len()).map(|g| self.tables.row(slot, g).held()).sum()
    }

    /// The empty hash chain of a sequence.
    pub fn chain(&self, salt: Option<&str>) -> PrefixChain {
        let salt = if planted!(self.planted, IgnoreSalt) { None } else { salt };
        PrefixChain::new(self.prefix.root(salt), self.lanes)
    }

    /// The longest prefix of `tokens` that all groups have cached. At least the last token is left to compute.
    /// `prompt` is how many of `tokens` are the prompt.
    pub fn find_prefix(&self, chain: &mut PrefixChain, tokens: &[u32], prompt: usize) -> PrefixHit {
        let limit = self.cacheable(tokens.len().saturating_sub(1), prompt);
        if limit == 0 {
            return PrefixHit::default();
        }
        let tokens = &tokens[..limit];
        let mut hit = limit as u32 / self.align * self.align;
        for g in 0..self.groups.len() {
            if self.groups[g].kind == GroupKind::Full {
                hit = hit.min(self.cached_from_start(g, chain, tokens) / self.align * self.align);
            }
        }
        let hit = self.cached_windows(chain, tokens, hit);
        self.count_hit(chain, tokens, hit)
    }

    /// Gives the row that enters `slot` the pages of `hit`, which must come from [`Self::find_prefix`] for the same
    /// tokens, with nothing in between. `target` is the length it may grow to.
    pub fn admit(
        &mut self,
        slot: u32,
        chain: &mut PrefixChain,
        tokens: &[u32],
        hit: PrefixHit,
        target: u32,
        deltas: &mut Vec<TableDelta>,
    ) {
        let target = target.min(RESERVED_ENTRIES.saturating_mul(self.groups[0].page_tokens));
        for g in 0..self.groups.len() {
            let spec = self.groups[g];
            self.tables.reserve(slot, g, target.div_ceil(spec.page_tokens) as usize);
            let hashes =
                chain.pages(&self.prefix, self.lane[g], spec.page_tokens, &tokens[..hit.tokens as usize]);
            let first = spec.first_read(hit.tokens) / spec.page_tokens;
            for (index, hash) in hashes.iter().enumerate() {
                let page = if (index as u32) < first { None } else { self.prefix.find(g as u32, *hash) };
                if let Some(page) = page
                    && !planted!(self.planted, ShareWithoutReference)
                {
                    self.pool.retain(page);
                }
                self.tables.push(slot, g, page.unwrap_or(NULL_PAGE), deltas);
            }
            self.tables.row_mut(slot, g).registered = hit.tokens / spec.page_tokens;
        }
        if self.prefix_caching != PrefixCaching::Off {
            chain.reserve(
                target.div_ceil(self.groups.iter().map(|g| g.page_tokens).min().unwrap_or(1)) as usize
            );
        }
    }

    /// Makes the row in `slot` own pages for positions `start .. end`, of which `start ..` are about to be computed,
    /// and frees what fell out of windows. False when pages are short: then it owns no more than before.
    #[inline]
    pub fn extend(&mut self, slot: u32, start: u32, end: u32, deltas: &mut Vec<TableDelta>) -> bool {
        let mut missing = 0;
        for g in 0..self.groups.len() {
            let spec = self.groups[g];
            if matches!(spec.kind, GroupKind::Window { .. }) {
                self.drop_behind_window(slot, g, start, deltas);
            }
            let entries = self.tables.row(slot, g).pages().len() as u32;
            missing += end.div_ceil(spec.page_tokens).saturating_sub(entries);
        }
        if missing == 0 {
            return true;
        }
        if missing > self.pool.free() {
            return false;
        }
        self.grow(slot, end, deltas);
        true
    }

    /// Offers the row's full pages among its first `computed` positions to the prefix cache. Their tokens must be
    /// known and their KV computed by a step that is already in the queue.
    #[inline]
    pub fn register(
        &mut self,
        slot: u32,
        chain: &mut PrefixChain,
        tokens: &[u32],
        computed: u32,
        prompt: usize,
    ) {
        let ready = self.cacheable(computed as usize, prompt);
        let ready = ready + usize::from(planted!(self.planted, RegisterEarly) && ready < tokens.len());
        for g in 0..self.groups.len() {
            let page_tokens = self.groups[g].page_tokens;
            let table = self.tables.row(slot, g);
            let (from, full) =
                (table.registered, (ready as u32 / page_tokens).min(table.pages().len() as u32));
            if full <= from {
                continue;
            }
            let hashes = chain.pages(&self.prefix, self.lane[g], page_tokens, &tokens[..ready]);
            for index in from..full {
                let page = self.tables.row(slot, g).pages()[index as usize];
                if page != NULL_PAGE && !self.prefix.knows(page) {
                    self.prefix.insert(g as u32, hashes[index as usize], page);
                }
            }
            self.tables.row_mut(slot, g).registered = full;
        }
    }

    /// Takes back every page of the row in `slot`, the last positions first, so that of two cached pages of a
    /// sequence the later one is evicted first.
    pub fn release(&mut self, slot: u32) {
        if planted!(self.planted, LeakLastPage) {
            self.tables.pop(slot, 0);
        }
        let mut left = true;
        while left {
            left = false;
            for g in 0..self.groups.len() {
                if let Some(page) = self.tables.pop(slot, g) {
                    self.release_page(page);
                    left = true;
                }
            }
        }
    }

    /// Forgets all cached content; rows keep their pages.
    pub fn clear_prefix_cache(&mut self) {
        self.prefix.clear();
    }

    /// How many of a sequence's first `computed` tokens may be cached.
    fn cacheable(&self, computed: usize, prompt: usize) -> usize {
        match self.prefix_caching {
            PrefixCaching::Off => 0,
            PrefixCaching::PromptPages => computed.min(prompt),
            PrefixCaching::AllPages => computed,
        }
    }

    /// Tokens from the start that full-attention group `g` has cached without a gap.
    fn cached_from_start(&self, g: usize, chain: &mut PrefixChain, tokens: &[u32]) -> u32 {
        let page_tokens = self.groups[g].page_tokens;
        let hashes = chain.pages(&self.prefix, self.lane[g], page_tokens, tokens);
        let cached = hashes.iter().take_while(|hash| self.prefix.find(g as u32, **hash).is_some()).count();
        cached as u32 * page_tokens
    }

    /// The longest prefix of at most `hit` tokens whose last window is cached in every window group. Each page that
    /// is missing moves the end of the prefix in front of it.
    fn cached_windows(&self, chain: &mut PrefixChain, tokens: &[u32], mut hit: u32) -> u32 {
        let mut g = 0;
        while g < self.groups.len() && hit > 0 {
            let spec = self.groups[g];
            g += 1;
            if spec.kind == GroupKind::Full {
                continue;
            }
            let hashes =
                chain.pages(&self.prefix, self.lane[g - 1], spec.page_tokens, &tokens[..hit as usize]);
            let first = spec.first_read(hit) / spec.page_tokens;
            let missing = |index: &u32| self.prefix.find(g as u32 - 1, hashes[*index as usize]).is_none();
            if let Some(index) = (first..hit / spec.page_tokens).rev().find(missing) {
                hit = index * spec.page_tokens / self.align * self.align;
                g = 0;
            }
        }
        hit
    }

    fn count_hit(&self, chain: &mut PrefixChain, tokens: &[u32], hit: u32) -> PrefixHit {
        let mut found = PrefixHit { tokens: hit, ..PrefixHit::default() };
        for (g, spec) in self.groups.iter().enumerate() {
            let hashes = chain.pages(&self.prefix, self.lane[g], spec.page_tokens, &tokens[..hit as usize]);
            let first = spec.first_read(hit) / spec.page_tokens;
            for hash in hashes.iter().skip(first as usize) {
                let Some(page) = self.prefix.find(g as u32, *hash) else { continue };
                found.pages += 1;
                found.idle_pages += u32::from(self.pool.refs(page) == 0);
            }
        }
        found
    }

    fn drop_behind_window(&mut self, slot: u32, g: usize, start: u32, deltas: &mut Vec<TableDelta>) {
        let spec = self.groups[g];
        let first =
            spec.first_read(start) / spec.page_tokens + u32::from(planted!(self.planted, FreeInsideWindow));
        while let Some(page) = self.tables.drop_before(slot, g, first, deltas) {
            self.release_page(page);
        }
    }

    fn grow(&mut self, slot: u32, end: u32, deltas: &mut Vec<TableDelta>) {
        for g in 0..self.groups.len() {
            let wanted = end.div_ceil(self.groups[g].page_tokens);
            while (self.tables.row(slot, g).pages().len() as u32) < wanted {
                let page = self.take_page();
                self.tables.push(slot, g, page, deltas);
                if planted!(self.planted, LoseDelta) && page.is_multiple_of(7) {
                    deltas.pop();
                }
            }
        }
    }

    fn take_page(&mut self) -> Page {
        let Some(page) = self.pool.take() else { unreachable!("extend() has counted the free pages") };
        if !planted!(self.planted, KeepEvictedContent) {
            self.prefix.forget(page);
        }
        page
    }

    fn release_page(&mut self, page: Page) {
        let reuse = if self.prefix.knows(page) { Reuse::Last } else { Reuse::First };
        self.pool.release(page, reuse);
        self.releases += 1;
    }
}

fn check_groups(groups: &[GroupSpec]) -> Result<()> {
    if groups.is_empty() || groups.len() > MAX_KV_GROUPS {
        return Err(Error::Config(format!(
            "{} KV groups; between 1 and {MAX_KV_GROUPS} are possible",
            groups.len()
        )));
    }
    for (g, spec) in groups.iter().enumerate() {
        if spec.page_tokens == 0 || spec.kind == (GroupKind::Window { tokens: 0 }) {
            return Err(Error::Config(format!(
                "KV group {g} is {spec:?}; pages and windows hold at least one token"
            )));
        }
    }
    Ok(())
}

fn lane_of(lengths: &mut Vec<u32>, page_tokens: u32) -> usize {
    lengths.iter().position(|l| *l == page_tokens).unwrap_or_else(|| {
        lengths.push(page_tokens);
        lengths.len() - 1
    })
}

fn lcm(a: u32, b: u32) -> u32 {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    (a / x).saturating_mul(b)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const FULL: GroupSpec = GroupSpec { kind: GroupKind::Full, page_tokens: 4 };
    const WINDOW: GroupSpec = GroupSpec { kind: GroupKind::Window { tokens: 5 }, page_tokens: 4 };

    fn manager(groups: &[GroupSpec], pages: u32) -> KvManager {
        let config = KvConfig {
            groups: groups.to_vec(),
            pages,
            prefix_caching: PrefixCaching::AllPages,
            hash_key: [1, 2],
        };
        KvManager::new(config, 4).unwrap()
    }

    /// Computes and registers all of `tokens` in `slot`, in chunks, from what the cache has; returns the hit.
    fn compute(kv: &mut KvManager, slot: u32, tokens: &[u32], chunk: usize) -> u32 {
        let (mut chain, mut deltas) = (kv.chain(None), Vec::new());
        let hit = kv.find_prefix(&mut chain, tokens, tokens.len());
        let length = tokens.len() as u32;
        kv.admit(slot, &mut chain, tokens, hit, length, &mut deltas);
        for start in (hit.tokens..length).step_by(chunk) {
            let end = length.min(start + chunk as u32);
            assert!(kv.extend(slot, start, end, &mut deltas), "{end} tokens do not fit");
            kv.register(slot, &mut chain, tokens, end, tokens.len());
        }
        hit.tokens
    }

    fn hit(kv: &KvManager, tokens: &[u32]) -> PrefixHit {
        kv.find_prefix(&mut kv.chain(None), tokens, tokens.len())
    }

    #[test]
    fn one_token_is_always_left_to_compute() {
        let mut kv = manager(&[FULL], 9);
        let tokens: Vec<u32> = (0..8).collect();
        assert_eq!(compute(&mut kv, 0, &tokens, 8), 0);
        assert_eq!(hit(&kv, &tokens).tokens, 4);
        assert_eq!(hit(&kv, &(0..9).collect::<Vec<_>>()), PrefixHit { tokens: 8, idle_pages: 0, pages: 2 });
        kv.release(0);
        assert_eq!(hit(&kv, &(0..9).collect::<Vec<_>>()), PrefixHit { tokens: 8, idle_pages: 2, pages: 2 });
        assert_eq!(kv.pool().free(), kv.pool().usable());
    }

    #[test]
    fn the_last_pages_of_the_oldest_sequence_are_evicted_first() {
        let mut kv = manager(&[FULL], 8);
        let (old, new): (Vec<u32>, Vec<u32>) = ((0..13).collect(), (100..113).collect());
        compute(&mut kv, 0, &old, 16);
        kv.release(0);
        compute(&mut kv, 1, &new, 16);
        kv.release(1);
        // Seven usable pages: three full ones each, and the page of the 13th token, which nobody can find.
        assert_eq!((hit(&kv, &old).tokens, hit(&kv, &new).tokens), (12, 12));
        compute(&mut kv, 2, &[7; 4], 4);
        assert_eq!(
            (hit(&kv, &old).tokens, hit(&kv, &new).tokens),
            (12, 12),
            "a page without content goes first"
        );
        compute(&mut kv, 3, &[8; 4], 4);
        assert_eq!((hit(&kv, &old).tokens, hit(&kv, &new).tokens), (8, 12));
    }

    #[test]
    fn a_hit_needs_the_last_window_in_every_group() {
        let mut kv = manager(&[FULL, WINDOW], 40);
        let tokens: Vec<u32> = (0..30).collect();
        compute(&mut kv, 0, &tokens, 4);
        let table = kv.tables().row(0, 1);
        assert_eq!((table.pages().len(), table.first()), (8, 6), "positions before 24 have left the window");
        assert_eq!(compute(&mut kv, 1, &tokens[..23], 4), 20);
        assert_eq!(kv.tables().row(1, 1).pages()[..4], [NULL_PAGE; 4]);
        assert_eq!(kv.pool().refs(kv.tables().row(1, 0).pages()[0]), 2);
        // Another row takes the idle pages: what the window had let go is lost, row 0 still holds the full group's.
        kv.release(1);
        let other: Vec<u32> = (1_000..1_000 + (kv.pool().free() - 3) * 4).collect();
        compute(&mut kv, 2, &other, 4);
        assert!(kv.find_prefix(&mut kv.chain(None), &tokens, tokens.len()).tokens > 20);
        assert_eq!(hit(&kv, &tokens[..23]).tokens, 0);
    }

    #[test]
    fn nothing_is_taken_when_pages_are_short() {
        let mut kv = manager(&[FULL, FULL], 6);
        assert!(kv.extend(0, 0, 8, &mut Vec::new()));
        assert_eq!((kv.held_pages(0), kv.pool().free()), (4, 1));
        assert!(!kv.extend(0, 8, 12, &mut Vec::new()));
        assert_eq!((kv.held_pages(0), kv.pool().free()), (4, 1));
        assert_eq!((kv.most_tokens(8), kv.table_entries(9)), (8, 6));
    }

    #[test]
    fn impossible_memory_is_refused() {
        let zero = GroupSpec { kind: GroupKind::Full, page_tokens: 0 };
        for (groups, pages, text) in [
            (vec![], 9, "0 KV groups"),
            (vec![FULL; 9], 99, "9 KV groups"),
            (vec![zero], 9, "KV group 0"),
            (vec![FULL, WINDOW], 2, "the KV pool has 2 pages"),
        ] {
            let prefix_caching = PrefixCaching::Off;
            let error =
                KvManager::new(KvConfig { groups, pages, prefix_caching, hash_key: [0, 0] }, 1).unwrap_err();
            assert!(error.to_string().contains(text), "{error} does not say {text}");
        }
    }
}
