//! What is asked. Token counts come from the server's own tokenizer (`/tokenize`), so that no checkpoint is
//! needed where the load comes from.

use serde_json::{Value, json};

use super::connection::Endpoint;
use super::rng::Rng;
use crate::cli::{BenchBackend, BenchServeArgs, DatasetName};

/// One request.
#[derive(Clone, Debug)]
pub struct Sample {
    pub prompt: Prompt,
    pub prompt_len: u32,
    pub output_len: u32,
}

/// Its prompt.
#[derive(Clone, Debug)]
pub enum Prompt {
    Ids(Vec<u32>),
    Text(String),
}

/// Lengths of `random` where no flag says otherwise.
const RANDOM_INPUT_LEN: u32 = 1024;
const RANDOM_OUTPUT_LEN: u32 = 128;
/// Ordinary words: the ids they are made of are ordinary tokens of any vocabulary.
const WORDS: &str = "the of and to in is you that it he was for on are as with his they at be this have from or one \
    had by word but not what all were we when your can said there use an each which she do how their if will up \
    other about out many then them these so some her would make like him into time has look two more write go see \
    number no way could people my than first water been call who oil its now find long down day did get come made \
    may part over new sound take only little work know place year live me back give most very after thing our just \
    name good sentence man think say great where help through much before line right too mean old any same tell boy";

/// Makes or reads the requests.
///
/// # Errors
/// One sentence: a file that cannot be read, or a server without `/tokenize`.
pub async fn load(args: &BenchServeArgs, endpoint: &Endpoint, model: &str) -> Result<Vec<Sample>, String> {
    let counter = Counter { args, endpoint, model };
    match args.workload.dataset {
        DatasetName::Random => random(args, &counter).await,
        DatasetName::Sharegpt => {
            let text = read(args)?;
            let list: Vec<Value> =
                serde_json::from_str(&text).map_err(|e| format!("the ShareGPT file: {e}"))?;
            let turn = |c: &Value, i: usize| {
                c.pointer(&format!("/conversations/{i}/value"))?.as_str().map(str::to_string)
            };
            let pairs = list.iter().filter_map(|c| Some((turn(c, 0)?, turn(c, 1))));
            from_texts(args, &counter, pairs.collect()).await
        }
        DatasetName::Custom => {
            let text = read(args)?;
            let parse =
                |line: &str| serde_json::from_str::<Value>(line).map_err(|e| format!("the prompt file: {e}"));
            let lines: Vec<Value> =
                text.lines().filter(|l| !l.trim().is_empty()).map(parse).collect::<Result<_, _>>()?;
            let pairs = lines.iter().filter_map(|v| Some((v.get("prompt")?.as_str()?.to_string(), None)));
            from_texts(args, &counter, pairs.collect()).await
        }
    }
}

async fn random(args: &BenchServeArgs, counter: &Counter<'_>) -> Result<Vec<Sample>, String> {
    let w = &args.workload;
    let mut rng = Rng::new(w.seed);
    let ids = counter.ids(WORDS).await?;
    let pick = |rng: &mut Rng| ids[rng.between(0, ids.len() as u32 - 1) as usize];
    let prefix: Vec<u32> = (0..w.random_prefix_len).map(|_| pick(&mut rng)).collect();
    let (input, output) =
        (w.input_len.unwrap_or(RANDOM_INPUT_LEN), w.output_len.unwrap_or(RANDOM_OUTPUT_LEN));
    let mut samples = Vec::with_capacity(w.num_prompts as usize);
    for _ in 0..w.num_prompts {
        let length = around(&mut rng, input, w.random_range_ratio);
        let output_len = around(&mut rng, output, w.random_range_ratio).max(1);
        let mut prompt = prefix.clone();
        prompt.extend((0..length).map(|_| pick(&mut rng)));
        let prompt_len = prompt.len() as u32;
        let prompt = match args.backend {
            BenchBackend::Openai => Prompt::Ids(prompt),
            BenchBackend::OpenaiChat => Prompt::Text(counter.text(&prompt).await?),
        };
        samples.push(Sample { prompt, prompt_len, output_len });
    }
    Ok(samples)
}

/// `length` give or take `ratio` of it.
fn around(rng: &mut Rng, length: u32, ratio: f64) -> u32 {
    let low = (f64::from(length) * (1.0 - ratio)).floor() as u32;
    let high = (f64::from(length) * (1.0 + ratio)).ceil() as u32;
    if ratio == 0.0 { length } else { rng.between(low, high) }
}

async fn from_texts(
    args: &BenchServeArgs,
    counter: &Counter<'_>,
    pairs: Vec<(String, Option<String>)>,
) -> Result<Vec<Sample>, String> {
    let w = &args.workload;
    let mut samples = Vec::new();
    for (prompt, answer) in pairs.into_iter().take(w.num_prompts as usize) {
        let mut ids = counter.ids(&prompt).await?;
        let output_len = match (w.output_len, &answer) {
            (Some(length), _) => length,
            (None, Some(answer)) => counter.ids(answer).await?.len() as u32,
            (None, None) => RANDOM_OUTPUT_LEN,
        };
        let text = match w.input_len {
            Some(most) if ids.len() > most as usize => {
                ids.truncate(most as usize);
                counter.text(&ids).await?
            }
            _ => prompt,
        };
        let prompt_len = ids.len() as u32;
        samples.push(Sample { prompt: Prompt::Text(text), prompt_len, output_len: output_len.max(1) });
    }
    if samples.is_empty() {
        return Err("the data set has no prompts".into());
    }
    Ok(samples)
}

fn read(args: &BenchServeArgs) -> Result<String, String> {
    let path = args.workload.dataset_path.as_ref().ok_or("this data set needs --dataset-path")?;
    std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// The server's tokenizer.
struct Counter<'a> {
    args: &'a BenchServeArgs,
    endpoint: &'a Endpoint,
    model: &'a str,
}

impl Counter<'_> {
    async fn ids(&self, text: &str) -> Result<Vec<u32>, String> {
        let body = json!({ "model": self.model, "prompt": text, "add_special_tokens": false });
        let answer = self.endpoint.post("/tokenize", self.args, &body).await?;
        let tokens = answer["tokens"].as_array().ok_or("/tokenize gives no tokens")?;
        let ids: Vec<u32> =
            tokens.iter().filter_map(|t| t.as_u64().and_then(|t| u32::try_from(t).ok())).collect();
        if ids.is_empty() { Err("/tokenize gives no tokens".into()) } else { Ok(ids) }
    }

    async fn text(&self, ids: &[u32]) -> Result<String, String> {
        let body = json!({ "model": self.model, "tokens": ids });
        let answer = self.endpoint.post("/detokenize", self.args, &body).await?;
        answer["prompt"].as_str().map(str::to_string).ok_or_else(|| "/detokenize gives no prompt".into())
    }
}
