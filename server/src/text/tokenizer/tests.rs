//! Loading, special tokens and errors, over tokenizers written here; ids of real models are checked in `tests/models`.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use super::fixtures::byte_level_json;
use super::*;
use serde_json::{Value as Json, json};

/// A folder of its own for one test, removed at the end.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new(name: &str, files: &[(&str, &str)]) -> Self {
        let path = std::env::temp_dir().join(format!("pallium-tokenizer-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        for (file, text) in files {
            std::fs::write(path.join(file), text).unwrap();
        }
        Self(path)
    }

    fn load(&self) -> Result<Tokenizer, TokenizerError> {
        Tokenizer::from_directory(&self.0)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn tokenizer_json_loads_with_its_settings() {
    let config = json!({"eos_token": "<|end|>", "bos_token": {"content": "<new>"}, "add_bos_token": true,
        "added_tokens_decoder": {"260": {"content": "<new>", "special": true}}});
    let folder = Folder::new(
        "json",
        &[("tokenizer.json", &byte_level_json()), ("tokenizer_config.json", &config.to_string())],
    );
    let tokenizer = folder.load().unwrap();
    assert_eq!(tokenizer.vocab_size(), 261);
    let specials = SpecialIds { bos: Some(260), eos: Some(258), unk: None, pad: None };
    assert_eq!(tokenizer.special_ids(), specials);
    // The truncation of the file is ignored; special text becomes its token; bos is added as configured.
    let ids = tokenizer.encode("ab ab ab<|end|>", AddSpecial::Yes).unwrap();
    assert_eq!(ids, [260, 256, 257, 257, 258]);
    assert_eq!(tokenizer.encode("ab", AddSpecial::No).unwrap(), [256]);
    assert_eq!(tokenizer.decode(&ids, DecodeOptions::default()), "ab ab ab");
    let all = DecodeOptions { skip_special_tokens: false, ..Default::default() };
    assert_eq!(tokenizer.decode(&ids, all), "<new>ab ab ab<|end|>");
    assert_eq!(
        (tokenizer.token_string(257).as_deref(), tokenizer.token_text(257).as_str()),
        (Some("Ġab"), " ab")
    );
    assert_eq!((tokenizer.token_id("Ġab"), tokenizer.token_id("nope")), (Some(257), None));
    assert!(tokenizer.is_special(258) && !tokenizer.is_special(259) && !tokenizer.is_token(999));
    for text in ["", "日本語 🎉 e\u{301}\u{0}\u{feff}", "\u{10ffff}\r\n\t  "] {
        let ids = tokenizer.encode(text, AddSpecial::No).unwrap();
        assert_eq!(tokenizer.decode(&ids, all), text);
        let bytes: Vec<u8> = ids.iter().flat_map(|id| tokenizer.token_bytes(*id).into_owned()).collect();
        assert_eq!(bytes, text.as_bytes());
    }
}

#[test]
fn a_tokenizer_larger_than_the_model_is_refused() {
    let folder = Folder::new("fits", &[("tokenizer.json", &byte_level_json())]);
    let tokenizer = folder.load().unwrap();
    assert_eq!(tokenizer.check_fits(260), Ok(()));
    let error = tokenizer.check_fits(259).unwrap_err();
    assert_eq!(error, TokenizerError::BeyondVocabulary { token: "<tool>".into(), id: 259, model_vocab: 259 });
}

#[test]
fn vocab_and_merges_make_a_tokenizer() {
    let json: Json = serde_json::from_str(&byte_level_json()).unwrap();
    let vocab = json["model"]["vocab"].to_string();
    let files = [
        ("vocab.json", vocab.as_str()),
        ("merges.txt", "#version: 0.2\na b\nĠ ab\n"),
        ("tokenizer_config.json", r#"{"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|end|>"}"#),
        ("added_tokens.json", r#"{"<|end|>": 258, "<tool>": 259}"#),
    ];
    let tokenizer = Folder::new("merges", &files).load().unwrap();
    assert_eq!(tokenizer.encode("ab ab<tool>x<|end|>", AddSpecial::Yes).unwrap(), [256, 257, 259, 87, 258]);
    assert_eq!(tokenizer.special_ids().eos, Some(258));
    assert!(tokenizer.is_special(258) && !tokenizer.is_special(259));
}

#[test]
fn broken_files_are_named() {
    let missing = Folder::new("none", &[]).load().unwrap_err();
    assert!(
        matches!(&missing, TokenizerError::Missing { .. }) && missing.to_string().contains("tokenizer.json")
    );
    for (file, text) in [
        ("tokenizer.json", "{"),
        ("tokenizer.json", "{}"),
        ("tokenizer.model", "not a model"),
        ("tokenizer.model", ""),
        ("tokenizer_config.json", "[]"),
        ("added_tokens.json", "nonsense"),
    ] {
        let error = Folder::new("broken", &[(file, text)]).load().unwrap_err();
        assert!(
            matches!(&error, TokenizerError::File { path, .. } if path.ends_with(file)),
            "{file}: {error}"
        );
    }
    let error = Folder::new("vocab", &[("vocab.json", "{}"), ("merges.txt", "a b\n")]).load().unwrap_err();
    assert!(error.to_string().contains("merges.txt"), "{error}");
}
