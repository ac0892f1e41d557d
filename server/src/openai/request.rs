//! Fields that completions and chat share, and the way from prompts to running sequences.

use std::sync::Arc;
use std::time::Instant;

use axum::http::HeaderMap;
use engine_core::engine::types::Request;
use engine_core::sampling::SamplingParams;

use super::fields::Fields;
use super::prompt::Prompt;
use super::sampling::Sampling;
use crate::cli::SchedulingPolicy;
use crate::fanout::{RequestStream, RowSpec, Wake};
use crate::http::auth::Bearer;
use crate::http::error::ApiError;
use crate::http::ids;
use crate::http::limits::{MAX_CACHE_SALT_CHARS, MAX_REQUEST_ID_BYTES, MAX_SEQUENCES};
use crate::http::{App, AppState, Phase};

/// What a request says besides prompt and sampling.
#[derive(Debug)]
pub struct Common {
    /// With the endpoint's prefix.
    pub id: String,
    pub model: Option<String>,
    pub stream: bool,
    pub include_usage: bool,
    pub continuous_usage: bool,
    pub return_token_ids: bool,
    pub tokens_as_ids: bool,
    /// Tokens gathered per chunk.
    pub stream_interval: u32,
    priority: i64,
    cache_salt: Option<String>,
}

impl Common {
    /// Takes the fields out of a body. `prefix` is the endpoint's, such as `cmpl-`.
    pub fn read(f: &mut Fields, headers: &HeaderMap, app: &App, prefix: &str) -> Common {
        let frontend = &app.options.frontend;
        let stream = f.flag("stream").unwrap_or(false);
        let given = f.has("stream_options");
        let options =
            f.nested("stream_options", |o| (o.flag("include_usage"), o.flag("continuous_usage_stats")));
        if options.is_some() && !stream && given {
            f.reject("stream_options", "can only be set when `stream` is true");
        }
        let (include_usage, continuous) = options.unwrap_or_default();
        let include_usage = include_usage.unwrap_or(false) || frontend.enable_force_include_usage;
        let interval = f.int("stream_interval").unwrap_or(1);
        if !(1..=i64::from(u32::MAX)).contains(&interval) {
            f.reject("stream_interval", format!("must be at least 1, got {interval}"));
        }
        let id = header_id(headers).or_else(|| f.text("request_id")).unwrap_or_else(ids::random_hex);
        if id.len() > MAX_REQUEST_ID_BYTES {
            f.reject(
                "request_id",
                format!("must have at most {MAX_REQUEST_ID_BYTES} bytes, got {}", id.len()),
            );
        }
        let cache_salt = f.text("cache_salt");
        if let Some(why) = cache_salt.as_deref().and_then(wrong_salt) {
            f.reject("cache_salt", why);
        }
        Common {
            id: format!("{prefix}{id}"),
            model: f.text("model"),
            stream,
            include_usage,
            continuous_usage: include_usage && continuous.unwrap_or(false),
            return_token_ids: f.flag("return_token_ids").unwrap_or(false),
            tokens_as_ids: f
                .flag("return_tokens_as_token_ids")
                .unwrap_or(frontend.return_tokens_as_token_ids),
            stream_interval: (interval.max(1) as u32).max(frontend.stream_interval),
            priority: f.int("priority").unwrap_or(0),
            cache_salt,
        }
    }

    /// Checks what the schema cannot know.
    ///
    /// # Errors
    /// 404 for a model that is not served, 400 for a priority that cannot be honoured, 503 while shutting down.
    pub fn check(&self, app: &App) -> Result<(), ApiError> {
        if app.phase() >= Phase::Draining {
            return Err(ApiError::shutting_down());
        }
        check_model(self.model.as_deref(), app)?;
        let range = i64::from(i32::MIN)..=i64::from(i32::MAX);
        if !range.contains(&self.priority) {
            let message = format!("priority must fit 32 bits, got {}.", self.priority);
            return Err(ApiError::invalid(message).with_param("priority"));
        }
        if self.priority != 0 && app.engine.info().scheduling_policy != SchedulingPolicy::Priority {
            let message = format!(
                "Got priority {} but priority scheduling is not enabled (--scheduling-policy priority).",
                self.priority
            );
            return Err(ApiError::invalid(message).with_param("priority"));
        }
        Ok(())
    }

    /// Submits every answer to every prompt, on the account of the key in `work`.
    ///
    /// # Errors
    /// 400 when a prompt does not fit, 429 at the limit of one key, 503 when the queue is full or the server shuts
    /// down.
    pub fn submit(
        &self,
        app: &App,
        prompts: &[Arc<[u32]>],
        sampling: &Sampling,
        work: &mut Work,
    ) -> Result<RequestStream, ApiError> {
        let count = prompts.len() * sampling.best_of as usize;
        if count > MAX_SEQUENCES {
            let message =
                format!("The request makes {count} sequences; at most {MAX_SEQUENCES} are allowed.");
            return Err(ApiError::invalid(message));
        }
        let mut rows = Vec::with_capacity(count);
        let mut params = Vec::with_capacity(count);
        for prompt in prompts {
            for answer in 0..sampling.best_of {
                let p = sampling.for_prompt(prompt.len(), answer, &app.seeds)?;
                rows.push(RowSpec { prompt_tokens: prompt.len() as u32, max_tokens: p.max_tokens });
                params.push(p);
            }
        }
        work.hold(count)?;
        let wake = match (self.stream, sampling.stop.is_empty()) {
            (true, _) => Wake::Tokens(self.stream_interval),
            (false, true) => Wake::End,
            // Somebody must look for stop strings as the text comes.
            (false, false) => Wake::Tokens(1),
        };
        let stream = app.fanout.open(app.engine.clone(), &rows, wake);
        // After the sequences are registered: the end of the drain either sees them or is seen here.
        if app.phase() >= Phase::Expired {
            return Err(ApiError::shutting_down());
        }
        self.submit_rows(app, prompts, sampling.best_of as usize, params, &stream)?;
        Ok(stream)
    }

    fn submit_rows(
        &self,
        app: &App,
        prompts: &[Arc<[u32]>],
        per_prompt: usize,
        params: Vec<SamplingParams>,
        stream: &RequestStream,
    ) -> Result<(), ApiError> {
        let salt: Option<Arc<str>> = self.cache_salt.as_deref().map(Arc::from);
        let arrival = Instant::now();
        for (row, params) in params.into_iter().enumerate() {
            let request = Request {
                id: stream.id(row),
                prompt: prompts[row / per_prompt].clone(),
                params,
                priority: self.priority as i32,
                cache_salt: salt.clone(),
                arrival,
            };
            app.engine.submit(request).map_err(|refused| {
                app.metrics.refused(&refused);
                ApiError::from(refused)
            })?;
        }
        Ok(())
    }
}

/// 404 unless the model is served under this name; no name is the served model.
pub fn check_model(name: Option<&str>, app: &App) -> Result<(), ApiError> {
    match name {
        Some(name) if !app.engine.info().model_names.iter().any(|n| n == name) => {
            Err(ApiError::unknown_model(name))
        }
        _ => Ok(()),
    }
}

/// Counts a model request as in work, for the server and for the key it bears, until it is dropped.
pub struct Work {
    state: AppState,
    key: Option<Bearer>,
    sequences: usize,
}

impl Work {
    /// A request that bears this key, if any.
    pub fn start(state: &AppState, key: Option<Bearer>) -> Work {
        state.metrics.work_started();
        Work { state: state.clone(), key, sequences: 0 }
    }

    /// Puts the request's sequences on its key's account.
    ///
    /// # Errors
    /// 400 when they alone are more than one key may have in work (`--max-num-seqs-per-key`), 429 when they are too
    /// many beside those in work.
    fn hold(&mut self, sequences: usize) -> Result<(), ApiError> {
        let (Some(key), Some(limit)) = (self.key, self.state.options.frontend.max_num_seqs_per_key) else {
            return Ok(());
        };
        let limit = limit as usize;
        if sequences > limit {
            return Err(ApiError::invalid(format!(
                "The request makes {sequences} sequences; one key may have at most {limit} in work \
                 (--max-num-seqs-per-key)."
            )));
        }
        if let Err(open) = self.state.keys.hold(key, sequences, limit) {
            self.state.metrics.refused_by_key();
            return Err(ApiError::key_limit(open, limit));
        }
        self.sequences += sequences;
        Ok(())
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.state.keys.release(key, self.sequences);
        }
        self.state.metrics.work_ended();
    }
}

/// One line for `--enable-log-requests`, with at most `--max-log-len` characters or ids of the prompt.
pub fn log_request(app: &App, id: &str, prompt: &Prompt, sampling: &Sampling) {
    let frontend = &app.options.frontend;
    if !frontend.enable_log_requests {
        return;
    }
    let most = frontend.max_log_len.map_or(usize::MAX, |most| most as usize);
    let prompt = match prompt {
        Prompt::Text(text) => {
            format!("prompt: {:?}", text.char_indices().nth(most).map_or(&text[..], |(end, _)| &text[..end]))
        }
        Prompt::Ids(ids) => format!("prompt_token_ids: {:?}", &ids[..ids.len().min(most)]),
    };
    tracing::info!("Received request {id}: {prompt}, params: {:?}, n: {}", sampling.params, sampling.n);
}

fn header_id(headers: &HeaderMap) -> Option<String> {
    headers.get("x-request-id")?.to_str().ok().filter(|id| !id.is_empty()).map(str::to_string)
}

fn wrong_salt(salt: &str) -> Option<String> {
    let count = salt.chars().count();
    if count == 0 || count > MAX_CACHE_SALT_CHARS {
        return Some(format!("must have 1 to {MAX_CACHE_SALT_CHARS} characters, got {count}"));
    }
    salt.contains(['@', '/', '\\']).then(|| "must not contain `@`, `/` or `\\`".into())
}
