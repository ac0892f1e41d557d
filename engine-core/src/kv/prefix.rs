//! [`PrefixCache`]: finds pages by the tokens they hold and everything before them.
//!
//! A page is known by the hash of (hash of the page before, its token ids); the first page's parent is the hash of
//! the request's salt. Only full pages are known. Entries live in an intrusive hash table over page numbers, so
//! nothing allocates after construction; a page holds at most one entry and leaves the cache when it is handed out
//! for new content.

use std::hash::{BuildHasher, Hasher};

use super::siphash::{Key, SipHasher};
use super::{NULL_PAGE, Page};

/// What may be found in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixCaching {
    Off,
    /// Only pages whose tokens are all prompt tokens of the request that wrote them. For batch-invariant serving on
    /// backends whose prompt and decode kernels differ in the last bit (`backend`, rule 5).
    PromptPages,
    /// Pages of prompts and of generated tokens.
    AllPages,
}

/// Names the content of one full page, and by its parent all content before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageHash(u128);

/// A key that differs in every process, from the operating system's randomness.
pub fn random_key() -> Key {
    let word = || std::collections::hash_map::RandomState::new().build_hasher().finish();
    [word(), word()]
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    hash: PageHash,
    group: u32,
    next: Page,
    known: bool,
}

/// The cache of one page pool.
#[derive(Debug)]
pub struct PrefixCache {
    key: Key,
    buckets: Vec<Page>,
    entries: Vec<Entry>,
    known: u32,
}

impl PrefixCache {
    /// An empty cache over `pages` pages.
    pub fn new(pages: u32, key: Key) -> Self {
        let empty = Entry { hash: PageHash(0), group: 0, next: NULL_PAGE, known: false };
        let buckets = (pages.max(1) as usize).next_power_of_two();
        PrefixCache { key, buckets: vec![NULL_PAGE; buckets], entries: vec![empty; pages as usize], known: 0 }
    }

    /// Parent of a first page: requests with different salts never meet.
    pub fn root(&self, salt: Option<&str>) -> PageHash {
        let mut h = SipHasher::new([!self.key[0], self.key[1]]);
        let Some(salt) = salt else { return PageHash(h.finish(&[])) };
        h.word(1);
        let (words, tail) = salt.as_bytes().as_chunks::<8>();
        words.iter().for_each(|w| h.word(u64::from_le_bytes(*w)));
        PageHash(h.finish(tail))
    }

    /// Hash of a full page with `tokens` after `parent`.
    pub fn chain(&self, parent: PageHash, tokens: &[u32]) -> PageHash {
        let mut h = SipHasher::new(self.key);
        h.word(parent.0 as u64);
        h.word((parent.0 >> 64) as u64);
        let (pairs, tail) = tokens.as_chunks::<2>();
        pairs.iter().for_each(|[a, b]| h.word(u64::from(*a) | u64::from(*b) << 32));
        match tail {
            [] => PageHash(h.finish(&[])),
            [odd, ..] => PageHash(h.finish(&odd.to_le_bytes())),
        }
    }

    /// The page of `group` that holds this content, if any.
    pub fn find(&self, group: u32, hash: PageHash) -> Option<Page> {
        let mut page = self.buckets[self.bucket(hash)];
        while page != NULL_PAGE {
            let entry = &self.entries[page as usize];
            if entry.hash == hash && entry.group == group {
                return Some(page);
            }
            page = entry.next;
        }
        None
    }

    /// Makes `page` findable. Of two pages with the same content the first stays the one that is found.
    pub fn insert(&mut self, group: u32, hash: PageHash, page: Page) {
        if self.find(group, hash).is_some() {
            return;
        }
        assert!(!self.entries[page as usize].known, "page {page} already holds other cached content");
        let bucket = self.bucket(hash);
        self.entries[page as usize] = Entry { hash, group, next: self.buckets[bucket], known: true };
        self.buckets[bucket] = page;
        self.known += 1;
    }

    /// Whether `page` can be found.
    pub fn knows(&self, page: Page) -> bool {
        self.entries[page as usize].known
    }

    /// Pages that can be found.
    pub fn known(&self) -> u32 {
        self.known
    }

    /// `page` is about to get other content.
    pub fn forget(&mut self, page: Page) {
        let Entry { hash, next, known, .. } = self.entries[page as usize];
        if !known {
            return;
        }
        let bucket = self.bucket(hash);
        let mut at = self.buckets[bucket];
        if at == page {
            self.buckets[bucket] = next;
        } else {
            while self.entries[at as usize].next != page {
                at = self.entries[at as usize].next;
            }
            self.entries[at as usize].next = next;
        }
        self.entries[page as usize].known = false;
        self.known -= 1;
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.buckets.fill(NULL_PAGE);
        self.entries.iter_mut().for_each(|e| e.known = false);
        self.known = 0;
    }

    fn bucket(&self, hash: PageHash) -> usize {
        hash.0 as usize & (self.buckets.len() - 1)
    }
}

/// The page hashes of one sequence, computed once each: a list per distinct page length among the groups.
#[derive(Clone, Debug)]
pub struct PrefixChain {
    root: PageHash,
    lanes: Vec<Vec<PageHash>>,
}

impl PrefixChain {
    /// The chain of an empty sequence with `lanes` distinct page lengths.
    pub fn new(root: PageHash, lanes: usize) -> Self {
        PrefixChain { root, lanes: vec![Vec::new(); lanes] }
    }

    /// Makes room for a sequence of `pages` pages, so that growing to it allocates nothing.
    pub fn reserve(&mut self, pages: usize) {
        for lane in &mut self.lanes {
            lane.reserve(pages.saturating_sub(lane.len()));
        }
    }

    /// Hashes of the full pages of `tokens` in `lane`, whose pages hold `page_tokens` each.
    pub fn pages(
        &mut self,
        cache: &PrefixCache,
        lane: usize,
        page_tokens: u32,
        tokens: &[u32],
    ) -> &[PageHash] {
        let hashes = &mut self.lanes[lane];
        let page_tokens = page_tokens as usize;
        let full = tokens.len() / page_tokens;
        while hashes.len() < full {
            let parent = hashes.last().copied().unwrap_or(self.root);
            let at = hashes.len() * page_tokens;
            hashes.push(cache.chain(parent, &tokens[at..at + page_tokens]));
        }
        &hashes[..full]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_parent_salt_group_and_key_all_count() {
        let cache = PrefixCache::new(8, [1, 2]);
        let (none, a, b) = (cache.root(None), cache.root(Some("a")), cache.root(Some("b")));
        let long = cache.root(Some("a salt longer than a word"));
        let other = PrefixCache::new(8, [1, 3]);
        let hashes = [
            none,
            a,
            b,
            long,
            cache.root(Some("")),
            cache.chain(none, &[1, 2, 3]),
            cache.chain(none, &[1, 2, 3, 0]),
            cache.chain(none, &[1, 2, 4]),
            cache.chain(a, &[1, 2, 3]),
            cache.chain(cache.chain(none, &[1, 2, 3]), &[1, 2, 3]),
            other.chain(none, &[1, 2, 3]),
        ];
        for (i, x) in hashes.iter().enumerate() {
            assert!(hashes[i + 1..].iter().all(|y| x != y), "hash {i} collides");
        }
    }

    #[test]
    fn random_keys_differ() {
        assert_ne!(random_key(), random_key());
    }

    #[test]
    fn entries_in_one_bucket_are_found_and_forgotten_one_by_one() {
        let mut cache = PrefixCache::new(64, [7, 7]);
        let hashes: Vec<_> = (0..63u128).map(|i| PageHash((i << 64) | 5)).collect();
        for (i, hash) in hashes.iter().enumerate() {
            cache.insert(0, *hash, i as Page + 1);
        }
        assert_eq!(cache.known(), 63);
        for (i, hash) in hashes.iter().enumerate().step_by(2) {
            cache.forget(i as Page + 1);
            cache.forget(i as Page + 1);
            assert_eq!(cache.find(0, *hash), None);
        }
        for (i, hash) in hashes.iter().enumerate() {
            assert_eq!(cache.find(0, *hash), (i % 2 == 1).then_some(i as Page + 1));
            assert_eq!(cache.find(1, *hash), None);
        }
        cache.clear();
        assert_eq!((cache.known(), cache.find(0, hashes[1])), (0, None));
    }

    #[test]
    fn the_first_of_two_equal_pages_stays() {
        let mut cache = PrefixCache::new(4, [0, 0]);
        let hash = cache.root(None);
        cache.insert(0, hash, 1);
        cache.insert(0, hash, 2);
        assert_eq!((cache.find(0, hash), cache.knows(2)), (Some(1), false));
        cache.insert(1, hash, 2);
        assert_eq!(cache.find(1, hash), Some(2));
    }

    #[test]
    fn a_chain_grows_with_its_tokens() {
        let cache = PrefixCache::new(4, [3, 4]);
        let tokens: Vec<u32> = (0..10).collect();
        let mut grown = PrefixChain::new(cache.root(None), 2);
        for n in 0..=10 {
            assert_eq!(grown.pages(&cache, 0, 4, &tokens[..n]).len(), n / 4);
            assert_eq!(grown.pages(&cache, 1, 3, &tokens[..n]).len(), n / 3);
        }
        let mut whole = PrefixChain::new(cache.root(None), 2);
        assert_eq!(grown.pages(&cache, 0, 4, &tokens), whole.pages(&cache, 0, 4, &tokens));
        assert_eq!(grown.pages(&cache, 1, 3, &tokens), whole.pages(&cache, 1, 3, &tokens));
    }
}
