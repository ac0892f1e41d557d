//! Running answers: ids in, text out, stop strings applied. The same for streamed and whole answers.

use std::task::{Context, Poll};

use engine_core::engine::types::{EngineFailure, FinishReason, FirstOutput, TokenLogprobs};

use super::codec::{Codec, Detokenize};
use super::sampling::Sampling;
use crate::fanout::{RequestStream, Timing, Update};
use crate::text::stop::{StopChecker, StopText, Watch};

/// The answers of one request.
pub struct Generation {
    stream: RequestStream,
    update: Update,
    answers: Vec<Answer>,
    stops: Vec<String>,
    include_stop: bool,
    piece: Piece,
    fresh: String,
}

/// What is new in one answer.
#[derive(Debug, Default)]
pub struct Piece {
    /// Which answer.
    pub index: usize,
    pub text: String,
    pub tokens: Vec<u32>,
    /// One entry per token when asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// With the first piece only.
    pub prompt_logprobs: Option<Vec<Option<TokenLogprobs>>>,
    /// With the first piece only.
    pub first: Option<FirstOutput>,
    /// With the last piece only.
    pub end: Option<End>,
}

/// How an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The end-of-sequence token, a stop id or a stop string.
    Stop(Option<StopReason>),
    /// `max_tokens` or the context.
    Length,
    /// Aborted in the engine.
    Abort,
    /// The engine failed.
    Failed(EngineFailure),
}

/// The `stop_reason` field.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(untagged)]
pub enum StopReason {
    Token(u32),
    Text(String),
}

impl End {
    /// The `finish_reason` field.
    pub fn name(&self) -> &'static str {
        match self {
            End::Stop(_) => "stop",
            End::Length => "length",
            End::Abort => "abort",
            End::Failed(_) => "error",
        }
    }

    fn stopped_by(stop: &str) -> End {
        End::Stop(Some(StopReason::Text(stop.to_string())))
    }

    /// The `stop_reason` field.
    pub fn stop_reason(&self) -> Option<&StopReason> {
        match self {
            End::Stop(reason) => reason.as_ref(),
            _ => None,
        }
    }
}

struct Answer {
    detokenizer: Box<dyn Detokenize>,
    checker: StopChecker,
    tokens: u32,
    min_tokens: u32,
    timing: Option<Timing>,
}

impl Generation {
    /// Answers to `prompts`, `sampling.best_of` each, in the order in which `stream` numbers them.
    pub fn new(
        stream: RequestStream,
        prompts: &[std::sync::Arc<[u32]>],
        sampling: &Sampling,
        codec: &dyn Codec,
    ) -> Generation {
        let include_stop = sampling.include_stop_str_in_output;
        let mode = if include_stop { StopText::Include } else { StopText::Exclude };
        let answer = |prompt: &[u32]| Answer {
            detokenizer: codec.detokenizer(prompt, sampling.decode),
            checker: StopChecker::new(&sampling.stop, mode),
            tokens: 0,
            min_tokens: sampling.params.min_tokens,
            timing: None,
        };
        let answers =
            prompts.iter().flat_map(|p| (0..sampling.best_of).map(move |_| answer(p))).collect::<Vec<_>>();
        let (update, piece) = (Update::default(), Piece::default());
        Generation {
            stream,
            update,
            answers,
            stops: sampling.stop.clone(),
            include_stop,
            piece,
            fresh: String::new(),
        }
    }

    /// The next piece of any answer; `None` when all have ended.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<&mut Piece>> {
        match self.stream.poll_next(cx, &mut self.update) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Ready(Some(index)) => {
                self.digest(index);
                Poll::Ready(Some(&mut self.piece))
            }
        }
    }

    /// [`Self::poll_next`] for use in an async function: waits, then hands out the piece.
    pub async fn next(&mut self) -> Option<&mut Piece> {
        match self.stream.next(&mut self.update).await {
            None => None,
            Some(index) => {
                self.digest(index);
                Some(&mut self.piece)
            }
        }
    }

    /// Tokens generated so far by answer `index`.
    pub fn tokens(&self, index: usize) -> u32 {
        self.answers[index].tokens
    }

    /// Where the time of answer `index` went, once it has ended; `None` when it had no token.
    pub fn timing(&self, index: usize) -> Option<Timing> {
        self.answers[index].timing
    }

    /// Turns an update into a piece.
    fn digest(&mut self, index: usize) {
        let (answer, update, piece) = (&mut self.answers[index], &mut self.update, &mut self.piece);
        piece.text.clear();
        piece.index = index;
        piece.first = update.first.take();
        piece.prompt_logprobs = update.prompt_logprobs.take().map(|boxed| *boxed);
        piece.end = update.finish.map(End::from);
        answer.timing = update.timing;
        std::mem::swap(&mut piece.tokens, &mut update.tokens);
        std::mem::swap(&mut piece.logprobs, &mut update.logprobs);

        // The token that ended the answer counts and adds no text, unless asked for.
        let silent_last = matches!(piece.end, Some(End::Stop(_))) && !self.include_stop;
        let spoken = piece.tokens.len() - usize::from(silent_last && !piece.tokens.is_empty());
        for (i, token) in piece.tokens.iter().enumerate() {
            answer.tokens += 1;
            if i >= spoken {
                break;
            }
            self.fresh.clear();
            answer.detokenizer.push(*token, &mut self.fresh);
            if let Some(stop) = answer.speak(&self.fresh, &mut piece.text) {
                piece.tokens.truncate(i + 1);
                piece.logprobs.truncate(i + 1);
                piece.end = Some(End::stopped_by(&self.stops[stop]));
                let closed = self.stream.close(index, FinishReason::Stop { token: None });
                // It is known already when the engine ended the answer in the same step.
                answer.timing = answer.timing.or(closed);
                return;
            }
        }
        if piece.end.is_some() {
            self.fresh.clear();
            answer.detokenizer.finish(&mut self.fresh);
            let stop = answer.speak(&self.fresh, &mut piece.text);
            answer.checker.finish(&mut piece.text);
            if let Some(stop) = stop {
                piece.end = Some(End::stopped_by(&self.stops[stop]));
            }
        }
    }
}

impl Answer {
    /// Passes new text on; returns which stop string it completed.
    fn speak(&mut self, fresh: &str, out: &mut String) -> Option<usize> {
        let watch = if self.tokens <= self.min_tokens { Watch::Ignore } else { Watch::Stop };
        self.checker.push(fresh, watch, out)
    }
}

impl From<FinishReason> for End {
    fn from(reason: FinishReason) -> Self {
        match reason {
            FinishReason::Stop { token } => End::Stop(token.map(StopReason::Token)),
            FinishReason::Length => End::Length,
            FinishReason::Abort => End::Abort,
            FinishReason::Error(failure) => End::Failed(failure),
        }
    }
}
