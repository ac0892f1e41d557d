//! How much text one token can stand for at most, so that a prompt that cannot fit is refused before it is tokenized.
//!
//! It is known for tokenizers that keep all of the text: every character ends up in a token. Where white space may be
//! dropped, or a run of unknown characters becomes one token, there is no bound.

use serde_json::Value as Json;

use super::TokenTable;
use crate::text::sentencepiece::{PieceKind, SentencePiece};

/// Characters that Unicode composition may make one of: a Greek letter with three marks.
const COMPOSED_CHARS: usize = 4;

/// Most characters of the text that one token stands for; `None` without a bound.
pub(super) fn of_hugging_face(tokenizer: &tokenizers::Tokenizer, table: &TokenTable) -> Option<usize> {
    let json = |part: Option<serde_json::Result<Json>>| part.and_then(Result::ok).unwrap_or(Json::Null);
    let normalizer = json(tokenizer.get_normalizer().map(serde_json::to_value));
    let splitter = json(tokenizer.get_pre_tokenizer().map(serde_json::to_value));
    let model = serde_json::to_value(tokenizer.get_model()).ok()?;
    let eats_space = tokenizer.get_added_tokens_decoder().values().any(|token| token.lstrip || token.rstrip);
    let whole =
        model["byte_fallback"] == true || has(&splitter, "ByteLevel") || has(&normalizer, "ByteLevel");
    if eats_space || !whole || !keeps_text(&splitter) {
        return None;
    }
    longest(table).checked_mul(joined_chars(&normalizer)?)
}

/// The same for a SentencePiece model; `eats_space`: an added token takes white space beside it along.
pub(super) fn of_sentencepiece(model: &SentencePiece, table: &TokenTable, eats_space: bool) -> Option<usize> {
    let bytes = model.pieces().iter().any(|piece| piece.kind == PieceKind::Byte);
    (bytes && model.keeps_text() && !eats_space).then(|| longest(table))
}

/// No token has more characters than bytes.
fn longest(table: &TokenTable) -> usize {
    (0..table.len()).map(|id| table.bytes(id as u32).len()).max().unwrap_or(0).max(1)
}

/// Whether a part of this type is there, perhaps in a sequence.
fn has(part: &Json, kind: &str) -> bool {
    part["type"] == kind || steps(part).iter().any(|step| has(step, kind))
}

fn steps(part: &Json) -> &[Json] {
    let list = part.get("normalizers").or_else(|| part.get("pretokenizers"));
    list.and_then(Json::as_array).map_or(&[], Vec::as_slice)
}

/// Whether splitting drops nothing.
fn keeps_text(splitter: &Json) -> bool {
    match splitter["type"].as_str() {
        None => splitter.is_null(),
        Some("ByteLevel" | "Metaspace" | "Digits" | "UnicodeScripts") => true,
        Some("Split" | "Punctuation") => splitter["behavior"] != "Removed",
        Some("Sequence") => steps(splitter).iter().all(keeps_text),
        Some(_) => false,
    }
}

/// How many characters a normalizer may make one of.
fn joined_chars(normalizer: &Json) -> Option<usize> {
    match normalizer["type"].as_str() {
        None => normalizer.is_null().then_some(1),
        Some("Prepend" | "ByteLevel" | "NFD" | "NFKD" | "Lowercase") => Some(1),
        Some("NFC" | "NFKC") => Some(COMPOSED_CHARS),
        Some("Replace") => {
            let from = normalizer["pattern"]["String"].as_str()?.chars().count();
            let to = normalizer["content"].as_str()?.chars().count();
            (to >= 1).then(|| from.max(1))
        }
        Some("Sequence") => {
            steps(normalizer).iter().try_fold(1_usize, |all, step| all.checked_mul(joined_chars(step)?))
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_keeps_text_has_a_bound() {
        assert!(keeps_text(&json!(null)));
        assert!(keeps_text(&json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "behavior": "Isolated"}, {"type": "ByteLevel"}]})));
        assert!(!keeps_text(&json!({"type": "Split", "behavior": "Removed"})));
        assert!(!keeps_text(&json!({"type": "Whitespace"})));
        assert_eq!(joined_chars(&json!(null)), Some(1));
        assert_eq!(joined_chars(&json!({"type": "NFC"})), Some(4));
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        assert_eq!(joined_chars(&replace), Some(1));
        let all = json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]});
        assert_eq!(joined_chars(&all), Some(1));
        let squeeze = json!({"type": "Replace", "pattern": {"Regex": " +"}, "content": " "});
        assert_eq!(joined_chars(&squeeze), None);
        assert_eq!(joined_chars(&json!({"type": "Strip"})), None);
    }
}
