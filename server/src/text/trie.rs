//! A byte trie over the texts of pieces and added tokens, for prefix matches.

/// Maps texts to ids; walks one byte at a time.
#[derive(Debug, Default)]
pub(crate) struct Trie {
    /// Children of a node lie side by side, sorted by byte; node 0 is the root.
    nodes: Vec<Node>,
}

#[derive(Debug, Clone, Copy)]
struct Node {
    byte: u8,
    /// [`NONE`] when no text ends here.
    id: u32,
    first_child: u32,
    child_count: u16,
}

const NONE: u32 = u32::MAX;

impl Trie {
    /// Empty texts are left out; of equal texts the first counts.
    pub fn new<'a>(texts: impl Iterator<Item = (&'a str, u32)>) -> Self {
        let mut texts: Vec<(&[u8], u32)> =
            texts.filter(|(text, _)| !text.is_empty()).map(|(text, id)| (text.as_bytes(), id)).collect();
        texts.sort_by_key(|(text, _)| *text);
        texts.dedup_by_key(|(text, _)| *text);
        let mut trie = Self { nodes: vec![Node { byte: 0, id: NONE, first_child: 0, child_count: 0 }] };
        // Each entry: a node, and the range of texts that share its path.
        let mut open = vec![(0_usize, 0..texts.len(), 0_usize)];
        while let Some((node, range, depth)) = open.pop() {
            let mut at = range.start;
            if at < range.end && texts[at].0.len() == depth {
                trie.nodes[node].id = texts[at].1;
                at += 1;
            }
            trie.nodes[node].first_child = trie.nodes.len() as u32;
            while at < range.end {
                let byte = texts[at].0[depth];
                let end = at + texts[at..range.end].partition_point(|(text, _)| text[depth] == byte);
                open.push((trie.nodes.len(), at..end, depth + 1));
                trie.nodes.push(Node { byte, id: NONE, first_child: 0, child_count: 0 });
                trie.nodes[node].child_count += 1;
                at = end;
            }
        }
        trie
    }

    /// Whether no text is in it.
    pub fn is_empty(&self) -> bool {
        self.nodes.len() <= 1
    }

    /// Every text that `input` starts with, shortest first: its length in bytes and its id.
    pub fn prefixes<'t>(&'t self, input: &'t [u8]) -> impl Iterator<Item = (usize, u32)> + 't {
        let mut node = self.nodes.first().copied();
        let mut length = 0;
        std::iter::from_fn(move || {
            loop {
                let next = self.child(&node?, *input.get(length)?);
                node = next;
                length += 1;
                match next {
                    Some(found) if found.id != NONE => return Some((length, found.id)),
                    Some(_) => {}
                    None => return None,
                }
            }
        })
    }

    /// The longest text that `input` starts with.
    pub fn longest_prefix(&self, input: &[u8]) -> Option<(usize, u32)> {
        if self.is_empty() { None } else { self.prefixes(input).last() }
    }

    fn child(&self, node: &Node, byte: u8) -> Option<Node> {
        let first = node.first_child as usize;
        let children = self.nodes.get(first..first + node.child_count as usize)?;
        children.binary_search_by_key(&byte, |child| child.byte).ok().map(|at| children[at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_come_shortest_first() {
        let trie = Trie::new([("ab", 1), ("a", 0), ("abcd", 3), ("b", 4), ("", 9), ("é", 5)].into_iter());
        assert_eq!(trie.prefixes(b"abcx").collect::<Vec<_>>(), [(1, 0), (2, 1)]);
        assert_eq!(trie.longest_prefix(b"abcde"), Some((4, 3)));
        assert_eq!(trie.longest_prefix("éa".as_bytes()), Some((2, 5)));
        assert_eq!(trie.longest_prefix(b"x"), None);
        assert!(Trie::new(std::iter::empty()).is_empty());
    }
}
