//! `POST /v1/completions`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Request, Response};
use bytes::BytesMut;

use super::answer::{self, Endpoint, Job, Prepared, Totals};
use super::chunk::put_field;
use super::fields::Fields;
use super::generation::{End, Piece};
use super::logprobs::CompletionLogprobs;
use super::prompt::{Encoding, Prompt, Truncation, check_lengths, encode_all, read_prompts};
use super::request::{Common, log_request};
use super::sampling::{self, SamplingFields};
use super::types::completion::{Completion, CompletionChoice};
use crate::http::AppState;
use crate::http::error::ApiError;
use crate::text::detokenize::DecodeOptions;

/// Answers a completion request.
pub async fn handle(State(state): State<AppState>, request: Request<Body>) -> Response<Body> {
    answer::handle::<Completions>(state, request).await
}

/// What a completion needs beside the job.
struct Completions {
    /// The prompts as text, for echo.
    echo: Option<Vec<String>>,
    /// Nothing of what is generated is returned (`max_tokens: 0` with echo).
    echo_only: bool,
    /// Whether `prompt_logprobs` themselves were asked for, rather than echo with logprobs.
    wants_prompt_logprobs: bool,
    /// Per answer of a stream: whether a chunk was sent, and characters that have log-probabilities.
    sent: Vec<(bool, usize)>,
}

/// What the body asks for, before the prompt is tokenized.
struct Parsed {
    common: Common,
    prompts: Vec<Prompt>,
    fields: SamplingFields,
    encoding: Encoding,
    echo: bool,
    echo_only: bool,
}

/// One answer while it is gathered.
struct Gathered {
    choice: CompletionChoice,
    /// Characters of the text that have log-probabilities.
    offset: usize,
    logprob_sum: f64,
    tokens: usize,
}

fn parse(body: &[u8], headers: &HeaderMap, state: &AppState) -> Result<Parsed, ApiError> {
    let mut f = Fields::parse(body)?;
    let common = Common::read(&mut f, headers, state, "cmpl-");
    let prompts = read_prompts(&mut f);
    let mut fields = SamplingFields::read(&mut f, sampling::Endpoint::Completions);
    let add_special_tokens = f.flag("add_special_tokens").unwrap_or(true);
    let encoding = Encoding { add_special_tokens, truncation: Truncation::read(&mut f) };
    let echo = f.flag("echo").unwrap_or(false);
    if f.take("suffix").is_some_and(|s| s != "") {
        f.reject("suffix", "is not supported by this server");
    }
    if common.stream && fields.wants_prompt_logprobs() {
        f.reject("prompt_logprobs", "are not available when `stream` is true");
    }
    if common.stream && fields.ranks_answers() {
        f.reject("best_of", "must equal n when `stream` is true");
    }
    f.check()?;
    let echo_only = echo && fields.nothing_to_generate();
    if echo_only {
        fields.generate_one();
    }
    Ok(Parsed { common, prompts, fields, encoding, echo, echo_only })
}

impl Endpoint for Completions {
    const CHUNK: &'static str = "text_completion";
    type Gathered = Gathered;

    async fn prepare(state: &AppState, body: &[u8], headers: &HeaderMap) -> Result<Prepared<Self>, ApiError> {
        let mut parsed = parse(body, headers, state)?;
        parsed.common.check(state)?;
        let info = state.engine.info();
        let wants_prompt_logprobs = parsed.fields.wants_prompt_logprobs();
        if parsed.echo {
            parsed.fields.logprobs_for_prompt();
        }
        let sampling = parsed.fields.resolve(info, &state.defaults, state.codec.as_ref())?;
        for prompt in &parsed.prompts {
            log_request(state, &parsed.common.id, prompt, &sampling);
        }
        check_lengths(&parsed.prompts, parsed.encoding, state.codec.as_ref(), info)?;
        let prompts = encode_all(parsed.prompts.clone(), parsed.encoding, &state.codec, info).await?;
        let echo = parsed.echo.then(|| echo_texts(&parsed, &prompts, state));
        let top = parsed.fields.logprobs().and(sampling.params.logprobs).map(|k| k as usize);
        let Parsed { common, echo_only, .. } = parsed;
        let sent = vec![(false, 0); prompts.len() * sampling.best_of as usize];
        let endpoint = Completions { echo, echo_only, wants_prompt_logprobs, sent };
        Ok(Prepared { common, sampling, prompts, top, endpoint })
    }

    fn begin(&self, job: &Job, index: usize) -> Gathered {
        let prompt = job.prompt_of(index);
        let ids = job.common.return_token_ids;
        let choice = CompletionChoice {
            index,
            text: self.echo.as_ref().map(|texts| texts[prompt].clone()).unwrap_or_default(),
            logprobs: job.top.map(|_| CompletionLogprobs::default()),
            finish_reason: None,
            stop_reason: None,
            token_ids: ids.then(Vec::new),
            prompt_logprobs: None,
            prompt_token_ids: ids.then(|| job.prompts[prompt].to_vec()),
        };
        Gathered { choice, offset: 0, logprob_sum: 0.0, tokens: 0 }
    }

    fn gather(&self, job: &Job, piece: &mut Piece, into: &mut Gathered) {
        if let Some(entries) = piece.prompt_logprobs.take() {
            if let (Some(top), Some(logprobs), true) =
                (job.top, &mut into.choice.logprobs, self.echo.is_some())
            {
                let prompt = &job.prompts[job.prompt_of(piece.index)];
                job.names().echo(prompt, &entries, top, &mut into.offset, logprobs);
            }
            if self.wants_prompt_logprobs {
                into.choice.prompt_logprobs = Some(job.names().prompt(&entries));
            }
        }
        if let Some(end) = &piece.end {
            into.choice.finish_reason = Some(end.name());
            into.choice.stop_reason = end.stop_reason().cloned();
        }
        if self.echo_only {
            return;
        }
        into.choice.text.push_str(&piece.text);
        if let (Some(top), Some(logprobs)) = (job.top, &mut into.choice.logprobs) {
            job.names().completion(&piece.logprobs, top, &mut into.offset, logprobs);
        }
        if let Some(ids) = &mut into.choice.token_ids {
            ids.extend_from_slice(&piece.tokens);
        }
        into.logprob_sum += piece.logprobs.iter().map(|l| f64::from(l.logprob)).sum::<f64>();
        into.tokens += piece.tokens.len();
    }

    fn body(&self, job: &Job, all: Vec<Gathered>, totals: Totals) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(&Completion {
            id: &job.common.id,
            object: Self::CHUNK,
            created: job.created,
            model: job.state.model_name(),
            choices: ranked(job, all),
            service_tier: None,
            system_fingerprint: Some(&job.state.system_fingerprint),
            usage: totals.usage,
            kv_transfer_params: None,
            metrics: totals.metrics,
        })
    }

    fn put_piece(&mut self, job: &Job, piece: &mut Piece, out: &mut BytesMut) {
        let (started, offset) = &mut self.sent[piece.index];
        let first = !std::mem::replace(started, true);
        let echo = self.echo.as_ref().filter(|_| first).map(|texts| &texts[job.prompt_of(piece.index)]);
        if self.echo_only {
            piece.text.clear();
            piece.tokens.clear();
            piece.logprobs.clear();
        }
        if let Some(text) = echo {
            piece.text.insert_str(0, text);
        }
        let logprobs = job.top.map(|top| {
            let mut logprobs = CompletionLogprobs::default();
            if let (Some(entries), Some(_)) = (&piece.prompt_logprobs, echo) {
                let prompt = &job.prompts[job.prompt_of(piece.index)];
                job.names().echo(prompt, entries, top, offset, &mut logprobs);
            }
            job.names().completion(&piece.logprobs, top, offset, &mut logprobs);
            logprobs
        });
        let silent = piece.text.is_empty() && piece.end.is_none();
        if silent && logprobs.is_none() && !job.common.return_token_ids {
            // An incomplete character or a possible stop string: nothing to show yet.
            return;
        }
        put_chunk(job, piece, logprobs.as_ref(), first, out);
    }

    fn generated(&self, job: &Job) -> u64 {
        if self.echo_only { 0 } else { job.tally.generated() }
    }
}

fn put_chunk(
    job: &Job,
    piece: &Piece,
    logprobs: Option<&CompletionLogprobs>,
    first: bool,
    out: &mut BytesMut,
) {
    job.writer.begin(out, piece.index);
    put_field(out, "text", &piece.text);
    put_field(out, "logprobs", &logprobs);
    put_field(out, "finish_reason", &piece.end.as_ref().map(End::name));
    put_field(out, "stop_reason", &piece.end.as_ref().and_then(End::stop_reason));
    if job.common.return_token_ids {
        if first {
            put_field(out, "prompt_token_ids", &job.prompts[job.prompt_of(piece.index)][..]);
        }
        put_field(out, "token_ids", &piece.tokens);
    }
    job.writer.end(out, job.usage_so_far(piece.index).as_ref());
}

impl Gathered {
    /// Mean log-probability per token, by which `best_of` ranks.
    fn rank(&self) -> f64 {
        self.logprob_sum / self.tokens.max(1) as f64
    }
}

/// The `n` best of each prompt, numbered through.
fn ranked(job: &Job, gathered: Vec<Gathered>) -> Vec<CompletionChoice> {
    let (n, best_of) = (job.sampling.n as usize, job.sampling.best_of as usize);
    let mut choices = Vec::with_capacity(n * job.prompts.len());
    let mut rows = gathered.into_iter();
    for _ in &job.prompts {
        let mut group: Vec<Gathered> = rows.by_ref().take(best_of).collect();
        if best_of > n {
            group.sort_by(|a, b| b.rank().total_cmp(&a.rank()));
            group.truncate(n);
        }
        choices.extend(group.into_iter().map(|g| g.choice));
    }
    for (index, choice) in choices.iter_mut().enumerate() {
        choice.index = index;
    }
    choices
}

/// The text that echo returns: as given where it was text and is whole, else decoded.
fn echo_texts(parsed: &Parsed, ids: &[Arc<[u32]>], state: &AppState) -> Vec<String> {
    let whole = parsed.encoding.truncation.is_none();
    let text = |(prompt, ids): (&Prompt, &Arc<[u32]>)| match prompt {
        Prompt::Text(text) if whole => text.clone(),
        _ => state.codec.decode(ids, DecodeOptions::default()),
    };
    parsed.prompts.iter().zip(ids).map(text).collect()
}
