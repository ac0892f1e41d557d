//! `POST /v1/chat/completions`.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Request, Response};
use bytes::{BufMut, BytesMut};

use super::answer::{self, Endpoint, Job, Prepared, Totals};
use super::chunk::{put_field, put_json};
use super::fields::Fields;
use super::generation::{End, Piece};
use super::logprobs::{ChatLogprobs, PromptLogprobs};
use super::prompt::{Encoding, Prompt, Truncation, check_lengths, encode_all};
use super::request::{Common, log_request};
use super::sampling::{self, SamplingFields};
use super::types::chat::{ChatChoice, ChatCompletion, ChatMessage};
use crate::http::AppState;
use crate::http::error::ApiError;

pub use super::conversation::{ChatSetup, Conversation};

/// Answers a chat request.
pub async fn handle(State(state): State<AppState>, request: Request<Body>) -> Response<Body> {
    answer::handle::<Chat>(state, request).await
}

/// What a chat answer needs beside the job.
struct Chat {
    /// `--response-role`
    role: String,
    /// What every answer begins with (`echo`).
    echo: String,
    /// The first chunk is out.
    started: bool,
}

/// One answer while it is gathered, with the prompt's log-probabilities when they came with it.
type Gathered = (ChatChoice, Option<PromptLogprobs>);

/// What the body asks for, before the template is rendered.
struct Parsed {
    common: Common,
    conversation: Conversation,
    fields: SamplingFields,
    truncation: Option<Truncation>,
    echo: bool,
}

fn parse(body: &[u8], headers: &HeaderMap, state: &AppState) -> Result<Parsed, ApiError> {
    let mut f = Fields::parse(body)?;
    let common = Common::read(&mut f, headers, state, "chatcmpl-");
    let conversation = Conversation::read(&mut f, body.len(), state);
    let fields = SamplingFields::read(&mut f, sampling::Endpoint::Chat);
    let truncation = Truncation::read(&mut f);
    let echo = f.flag("echo").unwrap_or(false);
    if common.stream && fields.wants_prompt_logprobs() {
        f.reject("prompt_logprobs", "are not available when `stream` is true");
    }
    f.check()?;
    Ok(Parsed { common, conversation, fields, truncation, echo })
}

impl Endpoint for Chat {
    const CHUNK: &'static str = "chat.completion.chunk";
    type Gathered = Gathered;

    async fn prepare(state: &AppState, body: &[u8], headers: &HeaderMap) -> Result<Prepared<Self>, ApiError> {
        let Parsed { common, conversation, fields, truncation, echo } = parse(body, headers, state)?;
        common.check(state)?;
        conversation.check_tool_choice()?;
        let info = state.engine.info();
        let sampling = fields.resolve(info, &state.defaults, state.codec.as_ref())?;
        let role = state.options.frontend.response_role.clone();
        let echo = conversation.last_text(&role).filter(|_| echo).unwrap_or_default().to_string();
        let encoding = Encoding { add_special_tokens: conversation.add_special_tokens, truncation };
        let text = conversation.render(state).await?;
        let prompt = Prompt::Text(text);
        log_request(state, &common.id, &prompt, &sampling);
        let prompts = vec![prompt];
        check_lengths(&prompts, encoding, state.codec.as_ref(), info)?;
        let prompts = encode_all(prompts, encoding, &state.codec, info).await?;
        let top = fields.logprobs().and(sampling.params.logprobs).map(|k| k as usize);
        Ok(Prepared { common, sampling, prompts, top, endpoint: Chat { role, echo, started: false } })
    }

    fn begin(&self, job: &Job, index: usize) -> Gathered {
        let message = ChatMessage {
            role: self.role.clone(),
            content: self.echo.clone(),
            refusal: None,
            annotations: None,
            audio: None,
            function_call: None,
            reasoning: None,
        };
        let choice = ChatChoice {
            index,
            message,
            logprobs: job.top.map(|_| ChatLogprobs::default()),
            finish_reason: None,
            stop_reason: None,
            token_ids: job.common.return_token_ids.then(Vec::new),
        };
        (choice, None)
    }

    fn gather(&self, job: &Job, piece: &mut Piece, (into, prompt_logprobs): &mut Gathered) {
        if let Some(entries) = piece.prompt_logprobs.take() {
            *prompt_logprobs = Some(job.names().prompt(&entries));
        }
        into.message.content.push_str(&piece.text);
        if let (Some(top), Some(logprobs)) = (job.top, &mut into.logprobs) {
            logprobs.content.extend(job.names().chat(&piece.logprobs, top).content);
        }
        if let Some(ids) = &mut into.token_ids {
            ids.extend_from_slice(&piece.tokens);
        }
        if let Some(end) = &piece.end {
            into.finish_reason = Some(end.name());
            into.stop_reason = end.stop_reason().cloned();
        }
    }

    fn body(&self, job: &Job, all: Vec<Gathered>, totals: Totals) -> serde_json::Result<Vec<u8>> {
        let (choices, prompt_logprobs): (Vec<_>, Vec<_>) = all.into_iter().unzip();
        serde_json::to_vec(&ChatCompletion {
            id: &job.common.id,
            object: "chat.completion",
            created: job.created,
            model: job.state.model_name(),
            choices,
            service_tier: None,
            system_fingerprint: Some(&job.state.system_fingerprint),
            usage: totals.usage,
            prompt_logprobs: prompt_logprobs.into_iter().flatten().next(),
            prompt_token_ids: job.common.return_token_ids.then(|| job.prompts[0].to_vec()),
            kv_transfer_params: None,
            metrics: totals.metrics,
        })
    }

    fn put_piece(&mut self, job: &Job, piece: &mut Piece, out: &mut BytesMut) {
        if !std::mem::replace(&mut self.started, true) {
            self.put_roles(job, out);
        }
        let silent = piece.text.is_empty() && piece.end.is_none();
        if silent && job.top.is_none() && !job.common.return_token_ids {
            // An incomplete character or a possible stop string: nothing to show yet.
            return;
        }
        job.writer.begin(out, piece.index);
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
        job.writer.end(out, job.usage_so_far(piece.index).as_ref());
    }
}

impl Chat {
    /// The first chunk of every answer: the role, and what `echo` repeats.
    fn put_roles(&self, job: &Job, out: &mut BytesMut) {
        for index in 0..job.tally.sequences() {
            job.writer.begin(out, index);
            out.put_slice(b",\"delta\":{\"role\":");
            put_json(out, &self.role);
            put_field(out, "content", "");
            out.put_slice(b"},\"logprobs\":null,\"finish_reason\":null");
            if job.common.return_token_ids {
                put_field(out, "prompt_token_ids", &job.prompts[0][..]);
            }
            let usage = job.usage_so_far(index);
            job.writer.end(out, usage.as_ref());
            if !self.echo.is_empty() {
                job.writer.begin(out, index);
                put_delta(out, &self.echo);
                out.put_slice(b",\"logprobs\":null,\"finish_reason\":null");
                job.writer.end(out, usage.as_ref());
            }
        }
    }
}

fn put_delta(out: &mut BytesMut, text: &str) {
    out.put_slice(b",\"delta\":{\"content\":");
    put_json(out, text);
    out.put_slice(b"}");
}
