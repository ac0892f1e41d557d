//! Small tokenizers for tests.

use serde_json::json;

use super::table::byte_level_bytes;

/// A byte-level tokenizer.json: every byte, two merges, `<|end|>` special, `<tool>` not.
pub(crate) fn byte_level_json() -> String {
    let mut vocab = serde_json::Map::new();
    let chars = ('\0'..'\u{200}')
        .filter(|c| byte_level_bytes(&c.to_string()) != c.to_string().as_bytes() || c.is_ascii_graphic());
    for c in chars {
        let id = vocab.len();
        vocab.insert(c.to_string(), json!(id));
    }
    assert_eq!(vocab.len(), 256);
    vocab.insert("ab".into(), json!(256));
    vocab.insert("Ġab".into(), json!(257));
    let token = |id: u32, content: &str, special: bool| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": special})
    };
    json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [token(258, "<|end|>", true), token(259, "<tool>", false)],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocab, "merges": [["a", "b"], ["Ġ", "ab"]]}
    })
    .to_string()
}

/// A WordPiece tokenizer.json, whose decoder needs neighbours.
pub(crate) fn word_piece_json() -> String {
    json!({
        "version": "1.0", "truncation": null, "padding": null, "post_processor": null, "added_tokens": [
            {"id": 0, "content": "[UNK]", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
            {"id": 5, "content": "[A]", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": false}],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": false},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
                  "vocab": {"[UNK]": 0, "play": 1, "##ing": 2, "##ed": 3, "日": 4, "[A]": 5}}
    })
    .to_string()
}
