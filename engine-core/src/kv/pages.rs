//! [`PagePool`]: the pages of one device, with reference counts and an intrusive free list. Every operation is O(1)
//! and none allocates.
//!
//! The free list is doubly linked through the pages themselves, with the null page as its head and tail. A page
//! nobody holds stays in it *with its content*: the prefix cache may still point there and
//! [`PagePool::retain`] brings it back. [`PagePool::take`] evicts from the front, so the order of release decides
//! what is evicted first.

use super::{NULL_PAGE, Page};

/// Where a released page enters the free list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// Its content is worthless: take it next.
    First,
    /// The prefix cache knows it: take it after everything released before.
    Last,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    refs: u32,
    prev: Page,
    next: Page,
}

/// Pages `1 ..= usable` of one pool; page 0 is the null page.
#[derive(Debug)]
pub struct PagePool {
    nodes: Vec<Node>,
    free: u32,
}

impl PagePool {
    /// A pool of `pages` pages, the null page among them, all free; the lowest numbers are taken first.
    pub fn new(pages: u32) -> Self {
        let pages = pages.max(1);
        let nodes = (0..pages)
            .map(|page| Node {
                refs: 0,
                prev: if page == 0 { pages - 1 } else { page - 1 },
                next: if page + 1 == pages { 0 } else { page + 1 },
            })
            .collect();
        PagePool { nodes, free: pages - 1 }
    }

    /// Pages that can be handed out at all (the null page is not among them).
    pub fn usable(&self) -> u32 {
        self.nodes.len() as u32 - 1
    }

    /// Pages nobody holds, whether the prefix cache knows them or not.
    pub fn free(&self) -> u32 {
        self.free
    }

    /// How many rows hold `page`.
    pub fn refs(&self, page: Page) -> u32 {
        self.nodes[page as usize].refs
    }

    /// Hands out the page at the front of the free list with one reference, or `None` when all are held. The caller
    /// must make the prefix cache forget it.
    pub fn take(&mut self) -> Option<Page> {
        let page = self.nodes[NULL_PAGE as usize].next;
        if page == NULL_PAGE {
            return None;
        }
        self.unlink(page);
        self.nodes[page as usize].refs = 1;
        Some(page)
    }

    /// One more holder of `page`; takes it out of the free list if it was there.
    pub fn retain(&mut self, page: Page) {
        assert_ne!(page, NULL_PAGE, "the null page has no holders");
        if self.nodes[page as usize].refs == 0 {
            self.unlink(page);
        }
        self.nodes[page as usize].refs += 1;
    }

    /// One holder less; the last one puts `page` into the free list.
    pub fn release(&mut self, page: Page, reuse: Reuse) {
        let node = &mut self.nodes[page as usize];
        assert!(node.refs > 0, "page {page} is released more often than it is held");
        node.refs -= 1;
        if node.refs == 0 {
            self.link(page, reuse);
        }
    }

    /// The free list from front (evicted first) to back. For checks; O(free pages).
    pub fn free_list(&self) -> impl Iterator<Item = Page> {
        let mut at = self.nodes[NULL_PAGE as usize].next;
        std::iter::from_fn(move || {
            let page = at;
            at = self.nodes[page as usize].next;
            (page != NULL_PAGE).then_some(page)
        })
    }

    fn unlink(&mut self, page: Page) {
        let Node { prev, next, .. } = self.nodes[page as usize];
        self.nodes[prev as usize].next = next;
        self.nodes[next as usize].prev = prev;
        self.free -= 1;
    }

    fn link(&mut self, page: Page, reuse: Reuse) {
        let (prev, next) = match reuse {
            Reuse::First => (NULL_PAGE, self.nodes[NULL_PAGE as usize].next),
            Reuse::Last => (self.nodes[NULL_PAGE as usize].prev, NULL_PAGE),
        };
        self.nodes[page as usize] = Node { refs: 0, prev, next };
        self.nodes[prev as usize].next = page;
        self.nodes[next as usize].prev = page;
        self.free += 1;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn order(pool: &PagePool) -> Vec<Page> {
        pool.free_list().collect()
    }

    #[test]
    fn pages_come_and_go_in_order() {
        let mut pool = PagePool::new(5);
        assert_eq!(order(&pool), [1, 2, 3, 4]);
        let taken: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(taken, [1, 2, 3, 4]);
        assert_eq!((pool.free(), pool.take()), (0, None));
        for page in [3, 2, 1] {
            pool.release(page, Reuse::Last);
        }
        pool.release(4, Reuse::First);
        assert_eq!(order(&pool), [4, 3, 2, 1]);
    }

    #[test]
    fn a_shared_page_is_free_only_after_its_last_holder() {
        let mut pool = PagePool::new(3);
        let page = pool.take().unwrap();
        pool.retain(page);
        pool.release(page, Reuse::Last);
        assert_eq!((pool.refs(page), pool.free()), (1, 1));
        pool.release(page, Reuse::Last);
        assert_eq!((pool.refs(page), pool.free()), (0, 2));
        pool.retain(page);
        assert_eq!((pool.refs(page), order(&pool)), (1, vec![2]));
    }

    #[test]
    #[should_panic(expected = "released more often")]
    fn releasing_twice_panics() {
        let mut pool = PagePool::new(3);
        let page = pool.take().unwrap();
        pool.release(page, Reuse::Last);
        pool.release(page, Reuse::Last);
    }

    #[test]
    fn a_pool_of_only_the_null_page_is_empty() {
        let mut pool = PagePool::new(1);
        assert_eq!((pool.usable(), pool.free(), pool.take()), (0, 0, None));
    }
}
