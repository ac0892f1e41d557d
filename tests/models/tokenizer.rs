//! The tokenizer of a real model: ids, text, and streamed text, against golden cases.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use server::text::detokenize::{DecodeOptions, Detokenizer};
use server::text::sentencepiece::{Place, SentencePiece};
use server::text::tokenizer::{AddSpecial, Tokenizer};

fn stories260k() -> Option<(PathBuf, Value)> {
    let Some(shared) = tests::shared_dir() else {
        println!("left out: the tokenizer cases of ../shared/models/stories260k, which is not there");
        return None;
    };
    let directory = shared.join("models/stories260k");
    let golden = serde_json::from_slice(&std::fs::read(directory.join("golden.json")).unwrap()).unwrap();
    Some((directory, golden))
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Pushes the ids one by one; the deltas must join to the whole.
fn check_streaming(tokenizer: &Arc<Tokenizer>, ids: &[u32], options: DecodeOptions) {
    let mut detokenizer = Detokenizer::new(Arc::clone(tokenizer), options);
    let mut streamed = String::new();
    for id in ids {
        detokenizer.push(*id, &mut streamed);
    }
    detokenizer.finish(&mut streamed);
    assert_eq!(streamed, tokenizer.decode(ids, options), "{ids:?}");
}

/// A directory with the SentencePiece model alone, as older checkpoints have it.
fn sentencepiece_only(directory: &Path) -> PathBuf {
    let copy = std::env::temp_dir().join(format!("pallium-spm-{}", std::process::id()));
    std::fs::create_dir_all(&copy).unwrap();
    for file in ["tokenizer.model", "tokenizer_config.json"] {
        std::fs::copy(directory.join(file), copy.join(file)).unwrap();
    }
    copy
}

#[test]
fn tokenizer_json_gives_the_golden_ids_and_text() {
    let Some((directory, golden)) = stories260k() else { return };
    let tokenizer = Arc::new(Tokenizer::from_directory(&directory).unwrap());
    for case in golden["tokenizer_cases"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let expected = ids(&case["ids_no_special"]);
        assert_eq!(tokenizer.encode(text, AddSpecial::No).unwrap(), expected, "{text:?}");
        let whole = DecodeOptions { skip_special_tokens: false, ..Default::default() };
        assert_eq!(tokenizer.decode(&expected, whole), case["decoded"].as_str().unwrap(), "{text:?}");
        check_streaming(&tokenizer, &expected, whole);
        check_streaming(&tokenizer, &expected, DecodeOptions::default());
    }
}

#[test]
fn generated_text_goes_on_after_its_prompt() {
    let Some((directory, golden)) = stories260k() else { return };
    let tokenizer = Arc::new(Tokenizer::from_directory(&directory).unwrap());
    for case in golden["cases"].as_array().unwrap() {
        let prompt = ids(&case["prompt_ids"]);
        assert_eq!(tokenizer.encode(case["prompt"].as_str().unwrap(), AddSpecial::Yes).unwrap(), prompt);
        let mut detokenizer =
            Detokenizer::after_prompt(Arc::clone(&tokenizer), &prompt, DecodeOptions::default());
        let mut text = String::new();
        for id in ids(&case["greedy_ids"]) {
            detokenizer.push(id, &mut text);
        }
        detokenizer.finish(&mut text);
        let prompt_text = tokenizer.decode(&prompt, DecodeOptions::default());
        assert_eq!(prompt_text + &text, case["full_text"].as_str().unwrap());
    }
}

#[test]
fn sentencepiece_gives_the_ids_of_its_own_library() {
    let Some((directory, golden)) = stories260k() else { return };
    let model =
        SentencePiece::from_bytes(&std::fs::read(directory.join("tokenizer.model")).unwrap()).unwrap();
    let copy = sentencepiece_only(&directory);
    let tokenizer = Arc::new(Tokenizer::from_directory(&copy).unwrap());
    std::fs::remove_dir_all(&copy).unwrap();
    for case in golden["tokenizer_cases"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let expected = ids(&case["sentencepiece_ids"]);
        assert_eq!(model.encode(text, Place::Start), expected, "{text:?}");
        if !text.contains('<') {
            assert_eq!(tokenizer.encode(text, AddSpecial::No).unwrap(), expected, "{text:?}");
        }
        check_streaming(&tokenizer, &expected, DecodeOptions::default());
    }
    assert_eq!(tokenizer.encode("a</s>", AddSpecial::Yes).unwrap()[0], 1);
    assert_eq!(tokenizer.encode("a</s>", AddSpecial::Yes).unwrap().last(), Some(&2));
}

#[test]
fn any_ids_stream_to_the_same_text_as_whole() {
    let Some((directory, _)) = stories260k() else { return };
    let tokenizer = Arc::new(Tokenizer::from_directory(&directory).unwrap());
    let mut state = 1_u64;
    for round in 0..3_000_u64 {
        let ids: Vec<u32> = (0..round % 40)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                // Ids past the vocabulary too, and every second one a byte token.
                (state >> 33) as u32 % if round % 2 == 0 { 520 } else { 260 }
            })
            .collect();
        for skip_special_tokens in [true, false] {
            let options = DecodeOptions { skip_special_tokens, ..Default::default() };
            check_streaming(&tokenizer, &ids, options);
        }
    }
}

#[test]
fn small_sentencepiece_models_give_the_ids_of_their_library() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tokenizers");
    let golden: Value =
        serde_json::from_slice(&std::fs::read(folder.join("sentencepiece.json")).unwrap()).unwrap();
    for (name, cases) in golden.as_object().unwrap() {
        let model =
            SentencePiece::from_bytes(&std::fs::read(folder.join(format!("{name}.model"))).unwrap()).unwrap();
        for case in cases.as_array().unwrap() {
            let text = case[0].as_str().unwrap();
            assert_eq!(model.encode(text, Place::Start), ids(&case[1]), "{name}: {text:?}");
        }
    }
}

#[test]
fn damaged_sentencepiece_models_are_refused_or_work() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tokenizers/unigram.model");
    let bytes = std::fs::read(path).unwrap();
    for length in (0..bytes.len()).step_by(7) {
        if let Ok(model) = SentencePiece::from_bytes(&bytes[..length]) {
            model.encode("kalo mi ﬁ <tool>", Place::Start);
        }
    }
    for at in (0..bytes.len()).step_by(3) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x55;
        if let Ok(model) = SentencePiece::from_bytes(&damaged) {
            model.encode("kalo mi ﬁ <tool> 日本", Place::Start);
        }
    }
}
