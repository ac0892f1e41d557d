//! The nearest right word to a wrong one.

/// The candidate most like `wrong`, when one is like enough to be what was meant.
pub fn nearest<'a>(wrong: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    nearest_weighted(wrong, candidates.map(|candidate| (candidate, 0.0)))
}

/// As [`nearest`], with a bonus for candidates that are meant more often than others.
pub fn nearest_weighted<'a>(
    wrong: &str,
    candidates: impl Iterator<Item = (&'a str, f64)>,
) -> Option<&'a str> {
    let wrong = wrong.to_ascii_lowercase();
    let mut best: Option<(f64, &str)> = None;
    for (candidate, bonus) in candidates {
        let score = likeness(&wrong, candidate);
        // The first of equals wins: tables list the more usual one first.
        if score >= LEAST_LIKENESS && best.is_none_or(|(top, _)| score + bonus > top) {
            best = Some((score + bonus, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// Below this a suggestion misleads more often than it helps (tried on the misspellings of the tests).
const LEAST_LIKENESS: f64 = 0.62;

/// 1 is equal, 0 nothing in common. Edits count letters; words in common count for names such as
/// `max-length` (max-model-len), where edits alone would miss.
fn likeness(wrong: &str, candidate: &str) -> f64 {
    let edits = strsim::normalized_damerau_levenshtein(wrong, candidate);
    let wrong_words: Vec<&str> = wrong.split('-').collect();
    let candidate_words: Vec<&str> = candidate.split('-').collect();
    let alike =
        |a: &str, b: &str| a == b || (a.len() > 2 && b.len() > 2 && (a.starts_with(b) || b.starts_with(a)));
    let common = wrong_words.iter().filter(|w| candidate_words.iter().any(|c| alike(w, c))).count();
    #[expect(clippy::cast_precision_loss, reason = "a handful of words")]
    let words = 2.0 * common as f64 / (wrong_words.len() + candidate_words.len()) as f64;
    edits.max(0.5 * edits + 0.5 * words)
}
