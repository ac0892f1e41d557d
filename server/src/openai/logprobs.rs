//! Log-probabilities in the two styles of the API.

use engine_core::engine::types::TokenLogprobs;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::codec::Codec;

/// JSON has no minus infinity.
const LEAST: f32 = -9999.0;

/// Completion style: parallel lists.
#[derive(Debug, Default, Serialize)]
pub struct CompletionLogprobs {
    pub text_offset: Vec<usize>,
    pub token_logprobs: Vec<Option<f32>>,
    pub tokens: Vec<String>,
    /// Per position the best tokens and the sampled one, by text.
    pub top_logprobs: Vec<Option<Map<String, Value>>>,
}

/// Chat style: one object per token.
#[derive(Debug, Default, Serialize)]
pub struct ChatLogprobs {
    pub content: Vec<ChatLogprob>,
}

/// One position in chat style.
#[derive(Debug, Serialize)]
pub struct ChatLogprob {
    #[serde(flatten)]
    pub sampled: Candidate,
    pub top_logprobs: Vec<Candidate>,
}

/// A token that could stand at a position.
#[derive(Debug, Serialize)]
pub struct Candidate {
    pub token: String,
    pub logprob: f32,
    pub bytes: Option<Vec<u8>>,
}

/// `prompt_logprobs`: per prompt token, candidates by id; `null` for the first token.
pub type PromptLogprobs = Vec<Option<Map<String, Value>>>;

/// Writes token names for log-probabilities.
#[derive(Clone, Copy)]
pub struct Names<'a> {
    pub codec: &'a dyn Codec,
    /// `token_id:N` in place of text.
    pub as_ids: bool,
}

impl Names<'_> {
    fn name(&self, id: u32) -> String {
        if self.as_ids {
            return format!("token_id:{id}");
        }
        String::from_utf8_lossy(&self.codec.token_bytes(id)).into_owned()
    }

    fn candidate(&self, id: u32, logprob: f32) -> Candidate {
        let token = self.name(id);
        let bytes = if self.as_ids { token.clone().into_bytes() } else { self.codec.token_bytes(id) };
        Candidate { token, logprob: logprob.max(LEAST), bytes: Some(bytes) }
    }

    /// Chat style; at most `top` candidates per position.
    pub fn chat(&self, entries: &[TokenLogprobs], top: usize) -> ChatLogprobs {
        let one = |e: &TokenLogprobs| ChatLogprob {
            sampled: self.candidate(e.token, e.logprob),
            top_logprobs: e.top.iter().take(top).map(|(id, lp)| self.candidate(*id, *lp)).collect(),
        };
        ChatLogprobs { content: entries.iter().map(one).collect() }
    }

    /// Appends positions in completion style. `offset` is the character position of the first token in the text
    /// and is moved behind the last.
    pub fn completion(
        &self,
        entries: &[TokenLogprobs],
        top: usize,
        offset: &mut usize,
        out: &mut CompletionLogprobs,
    ) {
        for e in entries {
            let name = self.name(e.token);
            out.text_offset.push(*offset);
            *offset += name.chars().count();
            out.token_logprobs.push(Some(e.logprob.max(LEAST)));
            let mut best = Map::new();
            best.insert(name.clone(), json!(e.logprob.max(LEAST)));
            for (id, lp) in e.top.iter().take(top) {
                best.insert(self.name(*id), json!(lp.max(LEAST)));
            }
            out.tokens.push(name);
            out.top_logprobs.push(Some(best));
        }
    }

    /// The prompt's positions in completion style (echo); the first token has no log-probability.
    pub fn echo(
        &self,
        prompt: &[u32],
        entries: &[Option<TokenLogprobs>],
        top: usize,
        offset: &mut usize,
        out: &mut CompletionLogprobs,
    ) {
        for (id, entry) in prompt.iter().zip(entries) {
            match entry {
                Some(e) => self.completion(std::slice::from_ref(e), top, offset, out),
                None => {
                    let name = self.name(*id);
                    out.text_offset.push(*offset);
                    *offset += name.chars().count();
                    out.tokens.push(name);
                    out.token_logprobs.push(None);
                    out.top_logprobs.push(None);
                }
            }
        }
    }

    /// `prompt_logprobs` of an answer.
    pub fn prompt(&self, entries: &[Option<TokenLogprobs>]) -> PromptLogprobs {
        let one = |e: &TokenLogprobs| {
            let mut by_id = Map::new();
            let mut put = |id: u32, logprob: f32, rank: u32| {
                let entry =
                    json!({ "logprob": logprob.max(LEAST), "rank": rank, "decoded_token": self.name(id) });
                by_id.insert(id.to_string(), entry);
            };
            put(e.token, e.logprob, e.rank);
            for (i, (id, lp)) in e.top.iter().enumerate() {
                if *id != e.token {
                    put(*id, *lp, i as u32 + 1);
                }
            }
            by_id
        };
        entries.iter().map(|e| e.as_ref().map(one)).collect()
    }
}
