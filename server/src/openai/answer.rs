//! From a request to its answer, whole or streamed: what completions and chat share. An [`Endpoint`] says how a
//! body is read and what pieces of text look like on the wire.

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::http::{HeaderMap, Request, Response, StatusCode};
use axum::response::IntoResponse;
use bytes::BytesMut;

use super::chunk::ChunkWriter;
use super::fields::read_body;
use super::generation::{End, Generation, Piece};
use super::logprobs::Names;
use super::request::{Common, Work};
use super::sampling::Sampling;
use super::tally::Tally;
use super::types::{RequestMetrics, Usage};
use crate::http::AppState;
use crate::http::error::{ApiError, json_response};
use crate::http::sse::{EventSource, event_stream, put_error};
use crate::http::state::unix_time_s;

/// One of the two endpoints that generate, with what its answer needs beside the [`Job`].
pub trait Endpoint: Sized + Send + Unpin + 'static {
    /// What chunks of a stream say they are.
    const CHUNK: &'static str;
    /// One answer while it is gathered.
    type Gathered: Send;

    /// Reads and checks a body and makes its prompts.
    ///
    /// # Errors
    /// Whatever is wrong with the request.
    fn prepare(
        state: &AppState,
        body: &[u8],
        headers: &HeaderMap,
    ) -> impl Future<Output = Result<Prepared<Self>, ApiError>> + Send;

    /// Answer number `index` before its first piece.
    fn begin(&self, job: &Job, index: usize) -> Self::Gathered;

    /// Adds a piece to its answer.
    fn gather(&self, job: &Job, piece: &mut Piece, into: &mut Self::Gathered);

    /// The whole answer as JSON.
    ///
    /// # Errors
    /// None that can happen: no map here has keys that are no strings.
    fn body(&self, job: &Job, all: Vec<Self::Gathered>, totals: Totals) -> serde_json::Result<Vec<u8>>;

    /// Appends the chunks that a piece makes, if any.
    fn put_piece(&mut self, job: &Job, piece: &mut Piece, out: &mut BytesMut);

    /// Tokens that `usage` counts as generated.
    fn generated(&self, job: &Job) -> u64 {
        job.tally.generated()
    }
}

/// A request that is read and checked.
pub struct Prepared<E> {
    pub common: Common,
    pub sampling: Sampling,
    pub prompts: Vec<Arc<[u32]>>,
    /// Candidates per position to show; `None`: no log-probabilities.
    pub top: Option<usize>,
    pub endpoint: E,
}

/// A request on its way.
pub struct Job {
    pub state: AppState,
    pub common: Common,
    pub sampling: Sampling,
    pub prompts: Vec<Arc<[u32]>>,
    /// Candidates per position to show; `None`: no log-probabilities.
    pub top: Option<usize>,
    pub tally: Tally,
    /// Writes chunks of this answer.
    pub writer: ChunkWriter,
    /// Unix time of the answer.
    pub created: u64,
    _work: Work,
}

/// Figures at the end of an answer.
pub struct Totals {
    pub usage: Usage,
    pub metrics: Option<RequestMetrics>,
}

/// Answers a request to endpoint `E`.
pub async fn handle<E: Endpoint>(state: AppState, request: Request<Body>) -> Response<Body> {
    let work = Work::start(&state, request.extensions().get().copied());
    answer::<E>(state, request, work).await.unwrap_or_else(IntoResponse::into_response)
}

async fn answer<E: Endpoint>(
    state: AppState,
    request: Request<Body>,
    mut work: Work,
) -> Result<Response<Body>, ApiError> {
    let headers = request.headers().clone();
    let body = read_body(request, state.options.max_body_bytes).await?;
    let Prepared { common, sampling, prompts, top, endpoint } = E::prepare(&state, &body, &headers).await?;
    let stream = common.submit(&state, &prompts, &sampling, &mut work)?;
    let generation = Generation::new(stream, &prompts, &sampling, state.codec.as_ref());
    let created = unix_time_s();
    let job = Job {
        tally: Tally::new(&prompts, &sampling),
        writer: ChunkWriter::new(&common.id, E::CHUNK, created, state.model_name()),
        created,
        state,
        common,
        sampling,
        prompts,
        top,
        _work: work,
    };
    if job.common.stream {
        let keep_alive = job.state.sse_keep_alive;
        return Ok(event_stream(Events { job, endpoint, generation }, keep_alive));
    }
    whole(job, endpoint, generation).await
}

impl Job {
    /// Writes token names as this request wants them.
    pub fn names(&self) -> Names<'_> {
        Names { codec: self.state.codec.as_ref(), as_ids: self.common.tokens_as_ids }
    }

    /// Which prompt answer number `index` is to.
    pub fn prompt_of(&self, index: usize) -> usize {
        index / self.sampling.best_of as usize
    }

    /// Usage of one answer so far, where every chunk is to carry it.
    pub fn usage_so_far(&self, index: usize) -> Option<Usage> {
        self.common.continuous_usage.then(|| self.tally.usage_of(index, &self.state))
    }

    /// All answers have ended: tells the metrics, and sums up.
    fn close(&self, generation: &Generation, generated: u64) -> Totals {
        self.tally.close(generation, &self.state.metrics);
        // The timings of one sequence say nothing about a request that has several.
        let wanted = self.state.options.frontend.enable_per_request_metrics && self.tally.sequences() == 1;
        let timing = generation.timing(0).filter(|_| wanted);
        Totals {
            usage: self.tally.usage(generated, &self.state),
            metrics: timing.map(|timing| RequestMetrics::new(timing, self.tally.generated())),
        }
    }
}

/// Gathers a whole answer.
async fn whole<E: Endpoint>(
    mut job: Job,
    endpoint: E,
    mut generation: Generation,
) -> Result<Response<Body>, ApiError> {
    let mut answers: Vec<E::Gathered> =
        (0..job.tally.sequences()).map(|index| endpoint.begin(&job, index)).collect();
    while let Some(piece) = generation.next().await {
        if let Some(End::Failed(failure)) = piece.end {
            return Err(failure.into());
        }
        job.tally.note(piece);
        endpoint.gather(&job, piece, &mut answers[piece.index]);
    }
    let totals = job.close(&generation, endpoint.generated(&job));
    let json = endpoint.body(&job, answers, totals).map_err(|e| ApiError::internal(e.to_string()))?;
    Ok(json_response(StatusCode::OK, json))
}

/// A streamed answer.
struct Events<E> {
    job: Job,
    endpoint: E,
    generation: Generation,
}

impl<E: Endpoint> Events<E> {
    fn finish(&mut self, out: &mut BytesMut) {
        let totals = self.job.close(&self.generation, self.endpoint.generated(&self.job));
        if self.job.common.include_usage {
            self.job.writer.usage(out, &totals.usage, totals.metrics.as_ref());
        }
    }
}

impl<E: Endpoint> EventSource for Events<E> {
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
                    self.job.tally.note(piece);
                    self.endpoint.put_piece(&self.job, piece, out);
                }
            }
        }
    }
}
