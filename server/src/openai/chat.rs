//! `POST /v1/chat/completions`.

use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Request, Response, StatusCode};
use axum::response::IntoResponse;
use bytes::{BufMut, BytesMut};

use super::chunk::{ChunkWriter, put_field, put_json};
use super::fields::{Fields, read_body};
use super::generation::{End, Generation, Piece};
use super::logprobs::{ChatLogprobs, Names, PromptLogprobs};
use super::prompt::{Encoding, Prompt, Truncation, encode_all};
use super::request::{Common, Work, log_request};
use super::sampling::{Endpoint, Sampling, SamplingFields};
use super::tally::Tally;
use super::types::chat::{ChatChoice, ChatCompletion, ChatMessage};
use crate::http::AppState;
use crate::http::error::{ApiError, json_response};
use crate::http::sse::{EventSource, event_stream, put_error};
use crate::http::state::unix_time_s;

pub use super::conversation::{ChatSetup, Conversation};

/// Answers a chat request.
pub async fn handle(State(state): State<AppState>, request: Request<Body>) -> Response<Body> {
    let work = Work::start(&state);
    answer(state, request, work).await.unwrap_or_else(IntoResponse::into_response)
}

/// What the body asks for, before the template is rendered.
struct Parsed {
    common: Common,
    conversation: Conversation,
    fields: SamplingFields,
    truncation: Option<Truncation>,
    echo: bool,
}

/// A request on its way.
struct Job {
    state: AppState,
    work: Work,
    common: Common,
    sampling: Sampling,
    /// One.
    prompts: Vec<Arc<[u32]>>,
    /// What every answer begins with (`echo`).
    echo: String,
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
    let common = Common::read(&mut f, headers, state, "chatcmpl-");
    let conversation = Conversation::read(&mut f, body.len(), state);
    let fields = SamplingFields::read(&mut f, Endpoint::Chat);
    let truncation = Truncation::read(&mut f);
    let echo = f.flag("echo").unwrap_or(false);
    if common.stream && fields.wants_prompt_logprobs() {
        f.reject("prompt_logprobs", "are not available when `stream` is true");
    }
    f.check()?;
    Ok(Parsed { common, conversation, fields, truncation, echo })
}

async fn prepare(state: AppState, work: Work, parsed: Parsed) -> Result<Job, ApiError> {
    let Parsed { common, conversation, fields, truncation, echo } = parsed;
    let info = state.engine.info();
    let sampling = fields.resolve(info, &state.defaults, state.codec.as_ref())?;
    let role = &state.options.frontend.response_role;
    let echo = conversation.last_text(role).filter(|_| echo).unwrap_or_default().to_string();
    let encoding = Encoding { add_special_tokens: conversation.add_special_tokens, truncation };
    let text = conversation.render(&state).await?;
    log_request(&state, &common.id, &text, &sampling);
    let prompts = encode_all(vec![Prompt::Text(text)], encoding, &state.codec, info).await?;
    let top = fields.logprobs().and(sampling.params.logprobs).map(|k| k as usize);
    Ok(Job { state, work, common, sampling, prompts, echo, top })
}

impl Job {
    fn names(&self) -> Names<'_> {
        Names { codec: self.state.codec.as_ref(), as_ids: self.common.tokens_as_ids }
    }

    fn role(&self) -> &str {
        &self.state.options.frontend.response_role
    }

    fn begin(&self, index: usize) -> ChatChoice<'_> {
        let message = ChatMessage {
            role: self.role(),
            content: self.echo.clone(),
            refusal: None,
            annotations: None,
            audio: None,
            function_call: None,
            reasoning: None,
        };
        ChatChoice {
            index,
            message,
            logprobs: self.top.map(|_| ChatLogprobs::default()),
            finish_reason: None,
            stop_reason: None,
            token_ids: self.common.return_token_ids.then(Vec::new),
        }
    }

    fn gather(&self, piece: &Piece, into: &mut ChatChoice<'_>) {
        into.message.content.push_str(&piece.text);
        if let (Some(top), Some(logprobs)) = (self.top, &mut into.logprobs) {
            logprobs.content.extend(self.names().chat(&piece.logprobs, top).content);
        }
        if let Some(ids) = &mut into.token_ids {
            ids.extend_from_slice(&piece.tokens);
        }
        if let Some(end) = &piece.end {
            into.finish_reason = Some(end.name());
            into.stop_reason = end.stop_reason().cloned();
        }
    }
}

/// Gathers a whole answer.
async fn whole(job: Job, mut generation: Generation) -> Result<Response<Body>, ApiError> {
    let mut tally = Tally::new(&job.prompts, &job.sampling);
    let mut choices: Vec<ChatChoice<'_>> = (0..tally.sequences()).map(|i| job.begin(i)).collect();
    let mut prompt_logprobs: Option<PromptLogprobs> = None;
    while let Some(piece) = generation.next().await {
        if let Some(End::Failed(failure)) = piece.end {
            return Err(failure.into());
        }
        tally.note(piece);
        if let Some(entries) = piece.prompt_logprobs.take() {
            prompt_logprobs.get_or_insert_with(|| job.names().prompt(&entries));
        }
        job.gather(piece, &mut choices[piece.index]);
    }
    tally.close(&generation, &job.state.metrics);
    let body = ChatCompletion {
        id: &job.common.id,
        object: "chat.completion",
        created: unix_time_s(),
        model: job.state.model_name(),
        choices,
        service_tier: None,
        system_fingerprint: Some(&job.state.system_fingerprint),
        usage: tally.usage(tally.generated(), &job.state),
        prompt_logprobs,
        prompt_token_ids: job.common.return_token_ids.then(|| job.prompts[0].to_vec()),
        kv_transfer_params: None,
    };
    let json = serde_json::to_vec(&body).map_err(|e| ApiError::internal(e.to_string()))?;
    drop(body);
    drop(job.work);
    Ok(json_response(StatusCode::OK, json))
}

/// A streamed answer.
struct Events {
    job: Job,
    generation: Generation,
    writer: ChunkWriter,
    tally: Tally,
    started: bool,
}

impl Events {
    fn new(job: Job, generation: Generation) -> Events {
        let writer =
            ChunkWriter::new(&job.common.id, "chat.completion.chunk", unix_time_s(), job.state.model_name());
        let tally = Tally::new(&job.prompts, &job.sampling);
        Events { job, generation, writer, tally, started: false }
    }

    fn finish(&mut self, out: &mut BytesMut) {
        self.tally.close(&self.generation, &self.job.state.metrics);
        if self.job.common.include_usage {
            let usage = self.tally.usage(self.tally.generated(), &self.job.state);
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
                    if !std::mem::replace(&mut self.started, true) {
                        put_roles(&self.job, &self.writer, &self.tally, out);
                    }
                    put_chunk(&self.job, &self.writer, &self.tally, piece, out);
                }
            }
        }
    }
}

/// The first chunk of every answer: the role, and what `echo` repeats.
fn put_roles(job: &Job, writer: &ChunkWriter, tally: &Tally, out: &mut BytesMut) {
    for index in 0..tally.sequences() {
        writer.begin(out, index);
        out.put_slice(b",\"delta\":{\"role\":");
        put_json(out, job.role());
        put_field(out, "content", "");
        out.put_slice(b"},\"logprobs\":null,\"finish_reason\":null");
        if job.common.return_token_ids {
            put_field(out, "prompt_token_ids", &job.prompts[0][..]);
        }
        let usage = job.common.continuous_usage.then(|| tally.usage_of(index, &job.state));
        writer.end(out, usage.as_ref());
        if !job.echo.is_empty() {
            writer.begin(out, index);
            put_delta(out, &job.echo);
            out.put_slice(b",\"logprobs\":null,\"finish_reason\":null");
            writer.end(out, usage.as_ref());
        }
    }
}

fn put_chunk(job: &Job, writer: &ChunkWriter, tally: &Tally, piece: &Piece, out: &mut BytesMut) {
    let silent = piece.text.is_empty() && piece.end.is_none();
    if silent && job.top.is_none() && !job.common.return_token_ids {
        // An incomplete character or a possible stop string: nothing to show yet.
        return;
    }
    writer.begin(out, piece.index);
    put_delta(out, &piece.text);
    let logprobs = job.top.map(|top| job.names().chat(&piece.logprobs, top));
    put_field(out, "logprobs", &logprobs);
    put_field(out, "finish_reason", &piece.end.as_ref().map(End::name));
    if let Some(end) = &piece.end {
        put_field(out, "stop_reason", &end.stop_reason());
    }
    if job.common.return_token_ids {
        put_field(out, "token_ids", &piece.tokens);
    }
    let usage = job.common.continuous_usage.then(|| tally.usage_of(piece.index, &job.state));
    writer.end(out, usage.as_ref());
}

fn put_delta(out: &mut BytesMut, text: &str) {
    out.put_slice(b",\"delta\":{\"content\":");
    put_json(out, text);
    out.put_slice(b"}");
}
