//! The bundled model's template and tokenizer give what Hugging Face transformers gives (demo-model/golden.json,
//! written by demo-model/golden.py).
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use server::chat::template::RenderInput;
use server::chat::template::source::{ChatTemplates, TemplateSources, WithTools, special_tokens};
use server::text::detokenize::DecodeOptions;
use server::text::tokenizer::{AddSpecial, Tokenizer};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo-model")
}

fn golden() -> Vec<Json> {
    let text = std::fs::read_to_string(directory().join("golden.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn ids(row: &Json, name: &str) -> Vec<u32> {
    row[name].as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

#[test]
fn prompts_render_as_transformers_renders_them() {
    let sources = TemplateSources::of_checkpoint(&directory()).unwrap();
    let templates = ChatTemplates::compile(&sources, &special_tokens(&directory()).unwrap()).unwrap();
    let rows = golden();
    assert!(rows.len() >= 7);
    for row in &rows {
        let input = RenderInput {
            messages: Some(&row["messages"]),
            tools: row.get("tools"),
            add_generation_prompt: true,
            ..RenderInput::default()
        };
        let with_tools = if row.get("tools").is_some() { WithTools::Yes } else { WithTools::No };
        assert_eq!(templates.get(with_tools).render(&input).unwrap(), row["text"].as_str().unwrap());
    }
}

#[test]
fn prompts_and_answers_have_the_token_ids_of_transformers() {
    let tokenizer = Tokenizer::from_directory(&directory()).unwrap();
    for row in golden() {
        let text = row["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text, AddSpecial::No).unwrap(), ids(&row, "ids"), "{text}");
        let answer = tokenizer.decode(&ids(&row, "answer_ids"), DecodeOptions::default());
        assert_eq!(answer, row["answer"].as_str().unwrap());
    }
}
