//! Stop strings in streamed text: found as soon as complete, with no more text held back than needed.
//!
//! The match that is complete first counts; of matches that are complete at once, the longest. So the result does not
//! depend on how the text was cut into deltas. What is held back is the longest end of the text that some stop string
//! begins with, never more. Each stop string is run as a Knuth-Morris-Pratt automaton: one step per byte.

/// Watches one sequence for stop strings.
#[derive(Debug, Clone)]
pub struct StopChecker {
    stops: Vec<Automaton>,
    mode: StopText,
    /// The end of the text that some stop string begins with.
    held: String,
    matched: Option<usize>,
}

/// Whether the stop string itself is part of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopText {
    /// The output ends before it.
    Exclude,
    /// The output ends with it (`include_stop_str_in_output`).
    Include,
}

/// Whether a complete stop string counts now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// It ends the sequence.
    Stop,
    /// It is plain text, as before `min_tokens`; a stop string that has only begun still counts later.
    Ignore,
}

impl StopChecker {
    /// Watches for `stops`; empty strings are left out.
    pub fn new(stops: &[impl AsRef<str>], mode: StopText) -> Self {
        let stops = stops.iter().enumerate().filter(|(_, stop)| !stop.as_ref().is_empty());
        let stops = stops.map(|(index, stop)| Automaton::new(index, stop.as_ref())).collect();
        Self { stops, mode, held: String::new(), matched: None }
    }

    /// Takes the next piece of text and appends to `out` what is certain. When a stop string is complete, returns its
    /// index in the list given to [`StopChecker::new`]; from then on all text is dropped.
    pub fn push(&mut self, delta: &str, watch: Watch, out: &mut String) -> Option<usize> {
        if self.matched.is_some() {
            return self.matched;
        }
        if self.stops.is_empty() {
            out.push_str(delta);
            return None;
        }
        for (at, byte) in delta.bytes().enumerate() {
            let complete = self
                .stops
                .iter_mut()
                .filter_map(|stop| stop.step(byte))
                .min_by_key(|c| std::cmp::Reverse(c.0));
            if let Some((length, index)) = complete.filter(|_| watch == Watch::Stop) {
                self.finish_at(&delta[..=at], length, out);
                self.matched = Some(index);
                return self.matched;
            }
        }
        let keep = self.stops.iter().map(Automaton::progress).max().unwrap_or(0);
        self.held.push_str(delta);
        let certain = self.held.len() - keep;
        out.push_str(&self.held[..certain]);
        self.held.drain(..certain);
        None
    }

    /// The end of the sequence for another reason: appends to `out` what was held back.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&std::mem::take(&mut self.held));
    }

    /// How many bytes are held back.
    pub fn held_bytes(&self) -> usize {
        self.held.len()
    }

    fn finish_at(&mut self, delta: &str, stop_length: usize, out: &mut String) {
        let mut text = std::mem::take(&mut self.held);
        text.push_str(delta);
        if self.mode == StopText::Exclude {
            text.truncate(text.len() - stop_length);
        }
        out.push_str(&text);
    }
}

/// The Knuth-Morris-Pratt automaton of one stop string.
#[derive(Debug, Clone)]
struct Automaton {
    index: usize,
    stop: Box<[u8]>,
    /// For each length of a matched prefix: the longest shorter prefix that is also its end.
    fallback: Box<[usize]>,
    matched: usize,
}

impl Automaton {
    fn new(index: usize, stop: &str) -> Self {
        let bytes = stop.as_bytes();
        let mut fallback = vec![0; bytes.len() + 1];
        let mut length = 0;
        for at in 1..bytes.len() {
            while length > 0 && bytes[at] != bytes[length] {
                length = fallback[length];
            }
            length += usize::from(bytes[at] == bytes[length]);
            fallback[at + 1] = length;
        }
        Self { index, stop: bytes.into(), fallback: fallback.into(), matched: 0 }
    }

    /// Takes one byte; when the stop string is complete with it, returns its length and index.
    fn step(&mut self, byte: u8) -> Option<(usize, usize)> {
        while self.matched > 0 && self.stop.get(self.matched) != Some(&byte) {
            self.matched = self.fallback[self.matched];
        }
        self.matched += usize::from(self.stop[self.matched] == byte);
        (self.matched == self.stop.len()).then_some((self.stop.len(), self.index))
    }

    /// How many bytes at the end of the text may be the start of the stop string; a complete one is over and done.
    fn progress(&self) -> usize {
        match self.matched == self.stop.len() {
            true => self.fallback[self.matched],
            false => self.matched,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small generator, so that a failure can be repeated (Knuth's MMIX constants).
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as usize % bound
        }

        fn text(&mut self, length: usize) -> String {
            (0..length).map(|_| ['a', 'b', 'é', '日'][self.below(4)]).collect()
        }
    }

    /// Tries every end of the text, then every stop string, the longest first.
    fn naive(text: &str, stops: &[String], mode: StopText) -> (String, Option<usize>) {
        for end in text.char_indices().map(|(at, c)| at + c.len_utf8()) {
            let ending =
                stops.iter().enumerate().filter(|(_, s)| !s.is_empty() && text[..end].ends_with(s.as_str()));
            if let Some((index, stop)) = ending.max_by_key(|(index, s)| (s.len(), std::cmp::Reverse(*index)))
            {
                let kept = if mode == StopText::Include { end } else { end - stop.len() };
                return (text[..kept].to_owned(), Some(index));
            }
        }
        (text.to_owned(), None)
    }

    fn naive_held(text: &str, stops: &[String]) -> usize {
        let prefixes = stops.iter().flat_map(|s| s.char_indices().map(|(at, _)| &s[..at]));
        prefixes.filter(|prefix| text.ends_with(prefix)).map(str::len).max().unwrap_or(0)
    }

    #[test]
    fn streaming_agrees_with_a_naive_search() {
        let mut random = Random(7);
        for round in 0..20_000 {
            let stops: Vec<String> = (0..random.below(4))
                .map(|_| {
                    let n = random.below(5);
                    random.text(n)
                })
                .collect();
            let mode = [StopText::Exclude, StopText::Include][random.below(2)];
            let (length, mut checker) = (random.below(20), StopChecker::new(&stops, mode));
            let text = random.text(length);
            let (mut out, mut fed, mut matched) = (String::new(), String::new(), None);
            let chars: Vec<char> = text.chars().collect();
            let mut rest = chars.as_slice();
            while !rest.is_empty() && matched.is_none() {
                let (delta, after) = rest.split_at(random.below(rest.len()) + 1);
                rest = after;
                let delta: String = delta.iter().collect();
                fed.push_str(&delta);
                matched = checker.push(&delta, Watch::Stop, &mut out);
                if matched.is_none() {
                    assert_eq!(fed.len() - out.len(), naive_held(&fed, &stops), "{round}: {fed:?} {stops:?}");
                }
            }
            checker.finish(&mut out);
            assert_eq!((out, matched), naive(&text, &stops, mode), "{round}: {text:?} {stops:?}");
        }
    }

    #[test]
    fn ignored_matches_are_text_but_a_begun_one_counts() {
        let mut checker = StopChecker::new(&["aba"], StopText::Exclude);
        let mut out = String::new();
        assert_eq!(checker.push("xaba", Watch::Ignore, &mut out), None);
        assert_eq!((out.as_str(), checker.held_bytes()), ("xab", 1));
        assert_eq!(checker.push("b", Watch::Ignore, &mut out), None);
        assert_eq!(checker.push("a!", Watch::Stop, &mut out), Some(0));
        assert_eq!(checker.push("more", Watch::Stop, &mut out), Some(0));
        checker.finish(&mut out);
        assert_eq!(out, "xab");
    }
}
