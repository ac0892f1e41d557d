//! Stop strings: matching on text, holding back exactly what may still become one.

/// The stop strings of one answer.
#[derive(Debug, Clone, Default)]
pub struct StopStrings {
    stops: Vec<String>,
    /// Text that is the beginning of a stop string.
    held: String,
}

impl StopStrings {
    /// None of `stops` may be empty.
    pub fn new(stops: &[String]) -> Self {
        StopStrings { stops: stops.to_vec(), held: String::new() }
    }

    /// Takes new text and appends what is certain to `out`. When a stop string is complete, returns it;
    /// `out` then ends before it, or after it when `include` is set.
    pub fn push(&mut self, text: &str, include: bool, out: &mut String) -> Option<String> {
        if self.stops.is_empty() {
            out.push_str(text);
            return None;
        }
        self.held.push_str(text);
        if let Some((at, index)) = self.first_match() {
            let end = if include { at + self.stops[index].len() } else { at };
            out.push_str(&self.held[..end]);
            self.held.clear();
            return Some(self.stops[index].clone());
        }
        let keep = self.possible_beginning();
        let certain = self.held.len() - keep;
        out.push_str(&self.held[..certain]);
        self.held.drain(..certain);
        None
    }

    /// Appends what was held back, at the end of the answer.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
    }

    /// The stop string that is complete first; of two that end together, the longer.
    fn first_match(&self) -> Option<(usize, usize)> {
        let found = self.stops.iter().enumerate().filter_map(|(i, s)| Some((self.held.find(s.as_str())?, i)));
        found.min_by_key(|(at, i)| (at + self.stops[*i].len(), *at))
    }

    /// Bytes at the end of the held text that begin a stop string.
    fn possible_beginning(&self) -> usize {
        let longest = self.stops.iter().map(|s| s.len() - 1).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest);
        let starts = (from..self.held.len()).filter(|i| self.held.is_char_boundary(*i));
        let mut tails = starts.map(|i| &self.held[i..]);
        tails.find(|tail| self.stops.iter().any(|s| s.starts_with(tail))).map_or(0, str::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str], include: bool) -> (Vec<String>, Option<String>) {
        let stops: Vec<String> = stops.iter().map(|s| s.to_string()).collect();
        let mut matcher = StopStrings::new(&stops);
        let mut outs = Vec::new();
        for piece in pieces {
            let mut out = String::new();
            let stop = matcher.push(piece, include, &mut out);
            outs.push(out);
            if stop.is_some() {
                return (outs, stop);
            }
        }
        let mut out = String::new();
        matcher.finish(&mut out);
        outs.push(out);
        (outs, None)
    }

    #[test]
    fn text_is_held_back_exactly_as_far_as_needed() {
        let check = |stops: &[&str], pieces: &[&str], outs: &[&str], stop: Option<&str>| {
            let outs = outs.iter().map(|s| s.to_string()).collect();
            assert_eq!(run(stops, pieces, false), (outs, stop.map(str::to_string)));
        };
        check(&["END"], &["a E", "N", "x"], &["a ", "", "ENx", ""], None);
        check(&["END"], &["a E", "N", "Db"], &["a ", "", ""], Some("END"));
        check(&["END"], &["EEN", "D"], &["E", ""], Some("END"));
        check(&["ab", "b"], &["xab"], &["x"], Some("ab"));
        check(&["é!"], &["caf", "é", "?"], &["caf", "", "é?", ""], None);
        check(&["END"], &["x EN"], &["x ", "EN"], None);
        check(&[], &["any"], &["any", ""], None);
    }

    #[test]
    fn the_stop_string_is_kept_on_request() {
        assert_eq!(
            run(&["END"], &["a E", "NDb"], true),
            (vec!["a ".into(), "END".into()], Some("END".into()))
        );
    }
}
