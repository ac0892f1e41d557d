//! Prompts through the engine of this process, timed. No HTTP, no templates: ids in, ids out.

use std::sync::Arc;
use std::time::Instant;

use engine_core::engine::types::{FinishReason, Request};
use engine_core::sampling::SamplingParams;

use crate::fanout::{RequestStream, RowSpec, Update, Wake};
use crate::http::AppState;
use crate::local::Local;
use crate::model::StartError;
use crate::text::detokenize::DecodeOptions;

/// Whether answers are turned into text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detokenize {
    Yes,
    No,
}

impl Detokenize {
    /// From `--disable-detokenize`.
    pub fn unless(disabled: bool) -> Self {
        if disabled { Detokenize::No } else { Detokenize::Yes }
    }
}

/// What became of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Timed {
    /// Until every sequence had its first token.
    pub first_s: f64,
    /// Until all had ended.
    pub total_s: f64,
    pub output_tokens: u64,
}

/// Full-length random sampling, as the benches of vLLM have it.
pub fn params(output_len: u32, seed: u64) -> SamplingParams {
    SamplingParams { max_tokens: output_len, ignore_eos: true, seed, ..SamplingParams::default() }
}

/// Submits every prompt at once, each with its rules, and waits for all.
///
/// # Errors
/// The engine refuses one, or fails.
pub async fn run(
    state: &AppState,
    sequences: &[(Arc<[u32]>, SamplingParams)],
    detokenize: Detokenize,
) -> Result<Timed, StartError> {
    let start = Instant::now();
    let mut stream = submit(state, sequences)?;
    let mut update = Update::default();
    let mut tokens: Vec<Vec<u32>> = vec![Vec::new(); sequences.len()];
    let (mut waiting, mut first_s) = (sequences.len(), 0.0);
    while let Some(row) = stream.next(&mut update).await {
        if tokens[row].is_empty() && !update.tokens.is_empty() {
            waiting -= 1;
            if waiting == 0 {
                first_s = start.elapsed().as_secs_f64();
            }
        }
        tokens[row].extend(&update.tokens);
        match update.finish {
            Some(FinishReason::Error(failure)) => {
                return Err(StartError::new(format!("the engine failed: {failure:?}")));
            }
            Some(_) if detokenize == Detokenize::Yes => {
                std::hint::black_box(state.codec.decode(&tokens[row], DecodeOptions::default()));
            }
            _ => {}
        }
    }
    let output_tokens = tokens.iter().map(|t| t.len() as u64).sum();
    Ok(Timed { first_s, total_s: start.elapsed().as_secs_f64(), output_tokens })
}

fn submit(state: &AppState, sequences: &[(Arc<[u32]>, SamplingParams)]) -> Result<RequestStream, StartError> {
    let rows: Vec<RowSpec> = sequences
        .iter()
        .map(|(prompt, params)| RowSpec { prompt_tokens: prompt.len() as u32, max_tokens: params.max_tokens })
        .collect();
    // The first token and the end are all that is looked at.
    let stream = state.fanout.open(state.engine.clone(), &rows, Wake::Tokens(u32::MAX));
    let arrival = Instant::now();
    for (row, (prompt, params)) in sequences.iter().enumerate() {
        let request = Request {
            id: stream.id(row),
            prompt: prompt.clone(),
            params: params.clone(),
            priority: 0,
            cache_salt: None,
            arrival,
        };
        state.engine.submit(request).map_err(|refused| StartError::new(refused.to_string()))?;
    }
    Ok(stream)
}

/// Refuses lengths that the engine would cut short.
///
/// # Errors
/// When prompt and answer together exceed the context.
pub fn check_fits(local: &Local, input_len: u32, output_len: u32) -> Result<(), StartError> {
    let context = local.engine.report.max_model_len;
    if u64::from(input_len) + u64::from(output_len) <= u64::from(context) {
        return Ok(());
    }
    Err(StartError::new(format!(
        "--input-len {input_len} and --output-len {output_len} exceed the context of {context} tokens; lower one, \
         or raise --max-model-len"
    )))
}
