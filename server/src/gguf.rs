//! GGUF as a model source: which file is meant, and what its metadata says beside weights and tokenizer.

use std::path::{Path, PathBuf};

use engine_core::loader::gguf::GgufFile;
use serde_json::{Map, Value};

use crate::model::StartError;

/// Whether a MODEL names a GGUF file.
pub fn is_gguf_path(model: &str) -> bool {
    model.ends_with(".gguf") && Path::new(model).is_file()
}

/// The repository and the quantization of an id of the form `org/name:Q4_K_M`.
pub fn repository_and_quant(model: &str) -> Option<(&str, &str)> {
    let (repository, quant) = model.split_once(':')?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let is_quant = !quant.is_empty() && quant.len() <= 64 && quant.chars().all(plain);
    (is_quant && !repository.is_empty() && !Path::new(model).exists()).then_some((repository, quant))
}

/// Globs for the files of a quantization in a repository, in the spellings that are used.
pub fn globs(quant: &str) -> Vec<String> {
    let mut globs: Vec<String> =
        [quant.to_owned(), quant.to_uppercase(), quant.to_lowercase()].map(|q| format!("*{q}*.gguf")).into();
    globs.dedup();
    globs
}

/// The GGUF file in `dir` (and folders in it): the one of `quant`, or the only one. Of a model in several files it
/// is the first.
///
/// # Errors
/// A sentence that lists what is there, when nothing or more than one file fits.
pub fn file_in(dir: &Path, quant: Option<&str>) -> Result<PathBuf, StartError> {
    let mut files = Vec::new();
    collect(dir, 1, &mut files);
    files.sort();
    files.retain(|path| part_of(path).is_none_or(|part| part == 1));
    let fits = |path: &&PathBuf| {
        quant.is_none_or(|q| {
            quant_of(path).is_some_and(|own| {
                own.eq_ignore_ascii_case(q)
                    || own.to_lowercase().ends_with(&format!("-{}", q.to_lowercase()))
                    || own.to_lowercase().ends_with(&format!(".{}", q.to_lowercase()))
            })
        })
    };
    let found: Vec<&PathBuf> = files.iter().filter(fits).collect();
    match found.as_slice() {
        [one] => Ok((*one).clone()),
        _ => {
            let names: Vec<String> = files.iter().map(|p| p.display().to_string()).collect();
            let wanted = quant.map_or("one .gguf file".to_owned(), |q| format!("one .gguf file of {q}"));
            Err(StartError::new(format!(
                "{}: {wanted} is wanted, {} fit; there are: {}",
                dir.display(),
                found.len(),
                if names.is_empty() { "none".to_owned() } else { names.join(", ") }
            )))
        }
    }
}

fn collect(dir: &Path, depth: usize, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && depth > 0 {
            collect(&path, depth - 1, into);
        } else if path.extension().is_some_and(|e| e == "gguf") && path.is_file() {
            into.push(path);
        }
    }
}

/// Which part of a split model a file is, by its name.
fn part_of(path: &Path) -> Option<u32> {
    let stem = path.file_stem()?.to_str()?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let part = rest.rsplit_once('-')?.1;
    (count.len() == 5 && part.len() == 5).then(|| part.parse().ok())?
}

/// A file's name without its end and without the number of its part.
fn quant_of(path: &Path) -> Option<String> {
    let stem = path.file_stem()?.to_str()?;
    Some(match part_of(path) {
        Some(_) => stem[..stem.len() - "-00001-of-00001".len()].to_owned(),
        None => stem.to_owned(),
    })
}

/// Chat templates in the metadata, by name; the main one is `default`.
pub fn templates(file: &GgufFile) -> Vec<(String, String)> {
    let main = "tokenizer.chat_template";
    let text = |key: &str| file.text(key).ok().flatten().map(str::to_owned);
    let named = file.keys().filter_map(|key| {
        let name = key.strip_prefix(main)?.strip_prefix('.')?;
        Some((name.to_owned(), text(key)?))
    });
    let mut all: Vec<(String, String)> = named.collect();
    all.extend(text(main).map(|t| ("default".to_owned(), t)));
    all
}

/// The special tokens as variables of a template.
pub fn special_tokens(file: &GgufFile) -> Map<String, Value> {
    let tokens = texts(file);
    let names =
        [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")];
    let token = |(name, key): (&str, &str)| {
        let id = file.u32(&format!("tokenizer.ggml.{key}_token_id")).ok()??;
        Some((name.to_owned(), Value::String(tokens.get(id as usize)?.clone())))
    };
    names.into_iter().filter_map(token).collect()
}

/// Ids that end an answer: those the metadata names, and the usual end markers among its control tokens.
pub fn end_ids(file: &GgufFile) -> Vec<u32> {
    const MARKERS: [&str; 8] = [
        "<|eot_id|>",
        "<|eom_id|>",
        "<|im_end|>",
        "<|end|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<｜end▁of▁sentence｜>",
    ];
    let named =
        ["eos", "eot", "eom"].map(|k| file.u32(&format!("tokenizer.ggml.{k}_token_id")).ok().flatten());
    let kinds = file.array("tokenizer.ggml.token_type").ok().flatten().and_then(|a| a.numbers());
    let is_control = |id: usize| kinds.as_ref().and_then(|k| k.get(id)).is_some_and(|k| *k == 3.0);
    let texts = texts(file);
    let marked = texts.iter().enumerate().filter(|(id, t)| is_control(*id) && MARKERS.contains(&t.as_str()));
    named.into_iter().flatten().chain(marked.map(|(id, _)| id as u32)).collect()
}

fn texts(file: &GgufFile) -> Vec<String> {
    file.array("tokenizer.ggml.tokens").ok().flatten().and_then(|a| a.texts()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_with_a_quantization_are_told_from_others() {
        assert_eq!(repository_and_quant("org/name:Q4_K_M"), Some(("org/name", "Q4_K_M")));
        for other in ["org/name", "org/name:", "org/name:a b", ":Q8_0"] {
            assert_eq!(repository_and_quant(other), None, "{other}");
        }
    }

    #[test]
    fn names_say_quantization_and_part() {
        let path = Path::new("d/m-Q4_K_M-00002-of-00003.gguf");
        assert_eq!((part_of(path), quant_of(path).as_deref()), (Some(2), Some("m-Q4_K_M")));
        let path = Path::new("m.Q8_0.gguf");
        assert_eq!((part_of(path), quant_of(path).as_deref()), (None, Some("m.Q8_0")));
    }
}
