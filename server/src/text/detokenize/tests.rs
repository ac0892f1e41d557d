//! Streaming against whole decodes, over small tokenizers of both kinds.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use super::*;
use crate::text::tokenizer::AddSpecial;
use crate::text::tokenizer::fixtures::{byte_level_json, word_piece_json};

fn load(name: &str, json: &str) -> Arc<Tokenizer> {
    let folder = std::env::temp_dir().join(format!("pallium-detokenize-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("tokenizer.json"), json).unwrap();
    let tokenizer = Tokenizer::from_directory(&folder).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    Arc::new(tokenizer)
}

/// The delta of every id, and what comes at the end.
fn deltas(mut detokenizer: Detokenizer, ids: &[u32]) -> Vec<String> {
    let mut deltas = vec![String::new(); ids.len() + 1];
    for (id, delta) in ids.iter().zip(&mut deltas) {
        detokenizer.push(*id, delta);
    }
    detokenizer.finish(&mut deltas[ids.len()]);
    deltas
}

#[test]
fn characters_wait_for_their_last_byte() {
    let tokenizer = load("bytes", &byte_level_json());
    let ids = tokenizer.encode("a日🎉b", AddSpecial::No).unwrap();
    assert_eq!(ids.len(), 9);
    let stream = deltas(Detokenizer::new(Arc::clone(&tokenizer), DecodeOptions::default()), &ids);
    assert_eq!(stream, ["a", "", "", "日", "", "", "", "🎉", "b", ""]);
    let cut = deltas(Detokenizer::new(Arc::clone(&tokenizer), DecodeOptions::default()), &ids[..6]);
    assert_eq!(cut.last().map(String::as_str), Some("\u{fffd}"));
    // A prompt that stops inside a character: the character comes out with its last byte.
    let rest = Detokenizer::after_prompt(Arc::clone(&tokenizer), &ids[..2], DecodeOptions::default());
    assert_eq!(deltas(rest, &ids[2..4]).concat(), "日");
}

#[test]
fn random_ids_stream_to_the_whole_and_to_the_lossy_bytes() {
    let tokenizer = load("random", &byte_level_json());
    let mut state = 11_u64;
    for round in 0..5_000 {
        let ids: Vec<u32> = (0..round % 24)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) as u32 % 265
            })
            .collect();
        let options = DecodeOptions { skip_special_tokens: round % 2 == 0, ..Default::default() };
        let shown = ids.iter().filter(|id| !(options.skip_special_tokens && tokenizer.is_special(**id)));
        let bytes: Vec<u8> = shown.flat_map(|id| tokenizer.token_bytes(*id).into_owned()).collect();
        let whole = tokenizer.decode(&ids, options);
        assert_eq!(whole, String::from_utf8_lossy(&bytes), "{ids:?}");
        assert_eq!(
            deltas(Detokenizer::new(Arc::clone(&tokenizer), options), &ids).concat(),
            whole,
            "{ids:?}"
        );
    }
}

#[test]
fn decoders_that_look_at_neighbours_stream_too() {
    let tokenizer = load("words", &word_piece_json());
    let options = DecodeOptions::default();
    let stream = deltas(Detokenizer::new(Arc::clone(&tokenizer), options), &[1, 2, 1, 3, 0, 4, 5, 5]);
    assert_eq!(stream, ["play", "ing", " play", "ed", "", " 日", " [A]", " [A]", ""]);
    assert_eq!(tokenizer.decode(&[1, 2, 1, 3, 0, 4, 5, 5], options), "playing played 日 [A] [A]");
    let close = DecodeOptions { spaces_between_special_tokens: false, ..options };
    assert_eq!(tokenizer.decode(&[1, 5, 5, 1], close), "play [A][A] play");
    let after = Detokenizer::after_prompt(Arc::clone(&tokenizer), &[1], options);
    assert_eq!(deltas(after, &[2, 1]).concat(), "ing play");
    assert_eq!(tokenizer.token_text(2), "##ing");
}
