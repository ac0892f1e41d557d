//! `POST /v1/completions`.

use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Request, Response, StatusCode};
use axum::response::IntoResponse;
use bytes::BytesMut;

use super::chunk::{ChunkWriter, put_field};
use super::fields::{Fields, read_body};
use super::generation::{End, Generation, Piece};
use super::logprobs::{CompletionLogprobs, Names};
use super::prompt::{Encoding, Prompt, Truncation, encode_all, read_prompts};
use super::request::{Common, Work, log_request};
use super::sampling::{Endpoint, Sampling, SamplingFields};
use super::tally::Tally;
use super::types::completion::{Completion, CompletionChoice};
use crate::http::AppState;
use crate::http::error::{ApiError, json_response};
use crate::http::sse::{EventSource, event_stream, put_error};
use crate::http::state::unix_time_s;
use crate::text::detokenize::DecodeOptions;

/// Answers a completion request.
pub async fn handle(State(state): State<AppState>, request: Request<Body>) -> Response<Body> {
    let work = Work::start(&state);
    answer(state, request, work).await.unwrap_or_else(IntoResponse::into_response)
}

/// What the body asks for, before the prompt is tokenized.
struct Parsed {
    common: Common,
    prompts: Vec<Prompt>,
    fields: SamplingFields,
    encoding: Encoding,
    echo: bool,
    /// Nothing of what is generated is returned (`max_tokens: 0` with echo).
    echo_only: bool,
}

/// A request on its way.
struct Job {
    state: AppState,
    work: Work,
    common: Common,
    sampling: Sampling,
    prompts: Vec<Arc<[u32]>>,
    /// The prompts as text, for echo.
    echo: Option<Vec<String>>,
    echo_only: bool,
    /// Whether `prompt_logprobs` themselves were asked for, rather than echo with logprobs.
    wants_prompt_logprobs: bool,
    /// Candidates per position to show.
    top: Option<usize>,
}

async fn answer(state: AppState, request: Request<Body>, work: Work) -> Result<Response<Body>, ApiError> {
    let headers = request.headers().clone();
    let body = read_body(request, state.options.max_body_bytes).await?;
    let parsed = parse(&body, &headers, &state)?;
    parsed.common.check(&state)?;
    let job = prepare(state, work, parsed).await?;
    let stream = job.common.submit(&job.state, &job.prompts, &job.sampling)?;
    let generation = Generation::new(stream, &job.prompts, &job.sampling, job.state.codec.as_ref());
    if job.common.stream {
        let keep_alive = job.state.options.sse_keep_alive;
        return Ok(event_stream(Events::new(job, generation), keep_alive));
    }
    whole(job, generation).await
}

fn parse(body: &[u8], headers: &HeaderMap, state: &AppState) -> Result<Parsed, ApiError> {
    let mut f = Fields::parse(body)?;
    let common = Common::read(&mut f, headers, state, "cmpl-");
    let prompts = read_prompts(&mut f);
    let mut fields = SamplingFields::read(&mut f, Endpoint::Completions);
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

async fn prepare(state: AppState, work: Work, mut parsed: Parsed) -> Result<Job, ApiError> {
    let info = state.engine.info();
    let wants_prompt_logprobs = parsed.fields.wants_prompt_logprobs();
    if parsed.echo {
        parsed.fields.logprobs_for_prompt();
    }
    let sampling = parsed.fields.resolve(info, &state.defaults, state.codec.as_ref())?;
    let texts = state.options.frontend.enable_log_requests.then(|| parsed.prompts.clone());
    let prompts = encode_all(parsed.prompts.clone(), parsed.encoding, &state.codec, info).await?;
    for prompt in texts.iter().flatten() {
        log_request(&state, &parsed.common.id, &format!("{prompt:?}"), &sampling);
    }
    let echo = match parsed.echo {
        true => Some(echo_texts(&parsed, &prompts, &state)),
        false => None,
    };
    let top = parsed.fields.logprobs().and(sampling.params.logprobs).map(|k| k as usize);
    let Parsed { common, echo_only, .. } = parsed;
    Ok(Job { state, work, common, sampling, prompts, echo, echo_only, wants_prompt_logprobs, top })
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

/// Gathers a whole answer.
async fn whole(job: Job, mut generation: Generation) -> Result<Response<Body>, ApiError> {
    let mut tally = Tally::new(&job.prompts, &job.sampling);
    let mut choices: Vec<Gathered> = (0..tally.sequences()).map(|row| job.begin(row)).collect();
    while let Some(piece) = generation.next().await {
        if let Some(End::Failed(failure)) = piece.end {
            return Err(failure.into());
        }
        tally.note(piece);
        job.gather(piece, &mut choices[piece.index]);
    }
    tally.close(&generation, &job.state.metrics);
    let generated = if job.echo_only { 0 } else { tally.generated() };
    let body = Completion {
        id: &job.common.id,
        object: "text_completion",
        created: unix_time_s(),
        model: job.state.model_name(),
        choices: job.ranked(choices),
        service_tier: None,
        system_fingerprint: Some(&job.state.system_fingerprint),
        usage: tally.usage(generated, &job.state),
        kv_transfer_params: None,
    };
    let json = serde_json::to_vec(&body).map_err(|e| ApiError::internal(e.to_string()))?;
    drop(job.work);
    Ok(json_response(StatusCode::OK, json))
}

/// One answer while it is gathered.
struct Gathered {
    choice: CompletionChoice,
    /// Characters of the text that have log-probabilities.
    offset: usize,
    logprob_sum: f64,
    tokens: usize,
}

impl Gathered {
    /// Mean log-probability per token, by which `best_of` ranks.
    fn rank(&self) -> f64 {
        self.logprob_sum / self.tokens.max(1) as f64
    }
}

impl Job {
    fn prompt_of(&self, row: usize) -> usize {
        row / self.sampling.best_of as usize
    }

    fn names(&self) -> Names<'_> {
        Names { codec: self.state.codec.as_ref(), as_ids: self.common.tokens_as_ids }
    }

    fn begin(&self, row: usize) -> Gathered {
        let prompt = self.prompt_of(row);
        let ids = self.common.return_token_ids;
        let choice = CompletionChoice {
            index: row,
            text: self.echo.as_ref().map(|texts| texts[prompt].clone()).unwrap_or_default(),
            logprobs: self.top.map(|_| CompletionLogprobs::default()),
            finish_reason: None,
            stop_reason: None,
            token_ids: ids.then(Vec::new),
            prompt_logprobs: None,
            prompt_token_ids: ids.then(|| self.prompts[prompt].to_vec()),
        };
        Gathered { choice, offset: 0, logprob_sum: 0.0, tokens: 0 }
    }

    fn gather(&self, piece: &mut Piece, into: &mut Gathered) {
        if let Some(entries) = piece.prompt_logprobs.take() {
            if let (Some(top), Some(logprobs), true) =
                (self.top, &mut into.choice.logprobs, self.echo.is_some())
            {
                let prompt = &self.prompts[self.prompt_of(piece.index)];
                self.names().echo(prompt, &entries, top, &mut into.offset, logprobs);
            }
            if self.wants_prompt_logprobs {
                into.choice.prompt_logprobs = Some(self.names().prompt(&entries));
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
        if let (Some(top), Some(logprobs)) = (self.top, &mut into.choice.logprobs) {
            self.names().completion(&piece.logprobs, top, &mut into.offset, logprobs);
        }
        if let Some(ids) = &mut into.choice.token_ids {
            ids.extend_from_slice(&piece.tokens);
        }
        into.logprob_sum += piece.logprobs.iter().map(|l| f64::from(l.logprob)).sum::<f64>();
        into.tokens += piece.tokens.len();
    }

    /// The `n` best of each prompt, numbered through.
    fn ranked(&self, gathered: Vec<Gathered>) -> Vec<CompletionChoice> {
        let (n, best_of) = (self.sampling.n as usize, self.sampling.best_of as usize);
        let mut choices = Vec::with_capacity(n * self.prompts.len());
        let mut rows = gathered.into_iter();
        for _ in &self.prompts {
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
}

/// A streamed answer.
struct Events {
    job: Job,
    generation: Generation,
    writer: ChunkWriter,
    tally: Tally,
    /// Per answer: whether a chunk was sent, and characters that have log-probabilities.
    sent: Vec<(bool, usize)>,
}

impl Events {
    fn new(job: Job, generation: Generation) -> Events {
        let writer =
            ChunkWriter::new(&job.common.id, "text_completion", unix_time_s(), job.state.model_name());
        let tally = Tally::new(&job.prompts, &job.sampling);
        let sent = vec![(false, 0); tally.sequences()];
        Events { job, generation, writer, tally, sent }
    }

    fn finish(&mut self, out: &mut BytesMut) {
        self.tally.close(&self.generation, &self.job.state.metrics);
        if self.job.common.include_usage {
            let generated = if self.job.echo_only { 0 } else { self.tally.generated() };
            let usage = self.tally.usage(generated, &self.job.state);
            self.writer.usage(out, &usage);
        }
    }
}

impl EventSource for Events {
    fn poll_events(&mut self, cx: &mut Context<'_>, out: &mut BytesMut) -> Poll<bool> {
        loop {
            match self.generation.poll_next(cx) {
                Poll::Pending if out.is_empty() => return Poll::Pending,
                Poll::Pending => return Poll::Ready(false),
                Poll::Ready(None) => {
                    self.finish(out);
                    return Poll::Ready(true);
                }
                Poll::Ready(Some(piece)) => {
                    if let Some(End::Failed(failure)) = piece.end {
                        put_error(out, &failure.into());
                        return Poll::Ready(true);
                    }
                    self.tally.note(piece);
                    put_chunk(&self.job, &self.writer, &self.tally, &mut self.sent[piece.index], piece, out);
                }
            }
        }
    }
}

fn put_chunk(
    job: &Job,
    writer: &ChunkWriter,
    tally: &Tally,
    (started, offset): &mut (bool, usize),
    piece: &mut Piece,
    out: &mut BytesMut,
) {
    let first = !std::mem::replace(started, true);
    let echo = job.echo.as_ref().filter(|_| first).map(|texts| &texts[job.prompt_of(piece.index)]);
    if job.echo_only {
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
    writer.begin(out, piece.index);
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
    let usage = job.common.continuous_usage.then(|| tally.usage_of(piece.index, &job.state));
    writer.end(out, usage.as_ref());
}
