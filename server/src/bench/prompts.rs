//! The requests of in-process benches: random ids, ShareGPT conversations, or prompts from a file.

use std::sync::Arc;

use serde_json::Value;

use super::serve::rng::Rng;
use crate::cli::{DatasetName, Workload};
use crate::model::StartError;
use crate::openai::codec::Codec;

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub prompt: Arc<[u32]>,
    pub output_len: u32,
}

/// Answer length where neither flag nor file says one.
const OUTPUT_LEN: u32 = 128;

/// `count` ids below `vocab_size`.
pub fn random_ids(rng: &mut Rng, count: u32, vocab_size: u32) -> Vec<u32> {
    (0..count).map(|_| rng.between(0, vocab_size - 1)).collect()
}

/// Makes or reads the requests of a workload.
///
/// # Errors
/// A file that cannot be read or has no prompts, with its name.
pub fn load(workload: &Workload, codec: &dyn Codec, vocab_size: u32) -> Result<Vec<Sample>, StartError> {
    let texts = match workload.dataset {
        DatasetName::Random => return Ok(random(workload, vocab_size)),
        DatasetName::Sharegpt => sharegpt(&read(workload)?),
        DatasetName::Custom => custom(&read(workload)?),
    };
    let about = |what: String| StartError::new(format!("--dataset-path {}: {what}", path_of(workload)));
    let texts = texts.map_err(about)?;
    if texts.is_empty() {
        return Err(about(format!("has no prompts for --dataset-name {}", workload.dataset.name())));
    }
    let samples = texts.into_iter().take(workload.num_prompts as usize);
    samples.map(|text| encode(workload, codec, &text).map_err(about)).collect()
}

/// A prompt and, where the file has one, the answer whose length is generated.
struct Text {
    prompt: String,
    answer: Option<String>,
}

fn random(w: &Workload, vocab_size: u32) -> Vec<Sample> {
    let mut rng = Rng::new(w.seed);
    let prefix = random_ids(&mut rng, w.random_prefix_len, vocab_size);
    let (input, output) = (w.input_len.unwrap_or(1024), w.output_len.unwrap_or(OUTPUT_LEN));
    let around = |rng: &mut Rng, length: u32| {
        let share = f64::from(length) * w.random_range_ratio;
        let (low, high) = (f64::from(length) - share, f64::from(length) + share);
        rng.between((low.floor() as u32).max(1), high.ceil() as u32)
    };
    let sample = |_| {
        let (input, output_len) = (around(&mut rng, input), around(&mut rng, output));
        let mut prompt = prefix.clone();
        prompt.extend(random_ids(&mut rng, input, vocab_size));
        Sample { prompt: prompt.into(), output_len }
    };
    (0..w.num_prompts).map(sample).collect()
}

fn encode(w: &Workload, codec: &dyn Codec, text: &Text) -> Result<Sample, String> {
    let mut prompt = codec.encode(&text.prompt, true)?;
    if let Some(most) = w.input_len {
        prompt.truncate(most as usize);
    }
    let output_len = match (w.output_len, &text.answer) {
        (Some(length), _) => length,
        (None, Some(answer)) => (codec.encode(answer, false)?.len() as u32).max(1),
        (None, None) => OUTPUT_LEN,
    };
    Ok(Sample { prompt: prompt.into(), output_len })
}

/// The first two turns of each conversation.
fn sharegpt(text: &str) -> Result<Vec<Text>, String> {
    let list: Vec<Value> = serde_json::from_str(text).map_err(|e| format!("is no ShareGPT file: {e}"))?;
    let turn = |c: &Value, i: usize| {
        c.pointer(&format!("/conversations/{i}/value"))?.as_str().filter(|t| !t.is_empty()).map(str::to_owned)
    };
    Ok(list.iter().filter_map(|c| Some(Text { prompt: turn(c, 0)?, answer: Some(turn(c, 1)?) })).collect())
}

/// One JSON object with a `prompt` a line.
fn custom(text: &str) -> Result<Vec<Text>, String> {
    let parse = |(i, line): (usize, &str)| {
        let value: Value = serde_json::from_str(line).map_err(|e| format!("line {}: {e}", i + 1))?;
        let prompt = value.get("prompt").and_then(Value::as_str).filter(|p| !p.is_empty());
        let prompt = prompt.ok_or_else(|| format!("line {}: has no prompt", i + 1))?;
        Ok(Text { prompt: prompt.to_owned(), answer: None })
    };
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(parse).collect()
}

fn read(w: &Workload) -> Result<String, StartError> {
    let path = w.dataset_path.as_deref().unwrap_or_else(|| std::path::Path::new(""));
    std::fs::read_to_string(path).map_err(|e| StartError::new(format!("--dataset-path {}: {e}", path_of(w))))
}

fn path_of(w: &Workload) -> String {
    w.dataset_path.as_ref().map_or_else(String::new, |p| p.display().to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::client::mock::bytes::ByteCodec;

    fn workload() -> Workload {
        Workload {
            dataset: DatasetName::Random,
            dataset_path: None,
            num_prompts: 50,
            input_len: Some(20),
            output_len: Some(10),
            random_range_ratio: 0.0,
            random_prefix_len: 3,
            seed: 5,
        }
    }

    #[test]
    fn random_prompts_have_the_lengths_asked_for() {
        let exact = load(&workload(), &ByteCodec, 40).unwrap();
        assert_eq!(exact.len(), 50);
        assert!(exact.iter().all(|s| s.prompt.len() == 23 && s.output_len == 10));
        assert!(exact.iter().all(|s| s.prompt[..3] == exact[0].prompt[..3]), "one prefix");
        assert!(exact.iter().flat_map(|s| s.prompt.iter()).all(|id| *id < 40));
        assert_eq!(load(&workload(), &ByteCodec, 40).unwrap(), exact, "a seed gives the same prompts");
        let varied = load(&Workload { random_range_ratio: 0.5, ..workload() }, &ByteCodec, 40).unwrap();
        let lengths: Vec<usize> = varied.iter().map(|s| s.prompt.len() - 3).collect();
        assert!(lengths.iter().all(|n| (10..=30).contains(n)) && lengths.iter().any(|n| *n != lengths[0]));
    }

    #[test]
    fn files_give_prompts_and_lengths() {
        let conversations = r#"[{"conversations": [{"value": "ab"}, {"value": "xyz"}]}, {"conversations": [{"value": "a"}]}]"#;
        let texts = sharegpt(conversations).unwrap();
        assert_eq!(texts.len(), 1, "a conversation without an answer is left out");
        let own = Workload { output_len: None, input_len: Some(1), ..workload() };
        let sample = encode(&own, &ByteCodec, &texts[0]).unwrap();
        assert_eq!((sample.prompt.len(), sample.output_len), (1, 3));
        assert_eq!(custom("{\"prompt\": \"a\"}\n\n{\"prompt\": \"b\"}\n").unwrap().len(), 2);
        assert!(custom("{\"prompt\": \"a\"}\n{}\n").err().unwrap().contains("line 2: has no prompt"));
        let missing =
            Workload { dataset: DatasetName::Custom, dataset_path: Some("no-file".into()), ..workload() };
        assert!(load(&missing, &ByteCodec, 40).unwrap_err().to_string().contains("--dataset-path no-file"));
    }
}
