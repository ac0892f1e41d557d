//! What each request must produce, computed alone: no batching, no pages, no scheduler.

use engine_core::engine::types::{FinishReason, Request};

use tests::rng::mix;

/// End-of-sequence id of the fake model.
pub const EOS: u32 = 1;
/// Stop id that some requests give.
pub const STOP: u32 = 2;

/// What the fake model writes as the KV of a position: a digest of everything up to it.
pub fn kv_value(before: u64, token: u32, tag: u64) -> u64 {
    mix(before ^ mix(u64::from(token) + 7) ^ tag).max(1)
}

/// What stands before position 0. Different salts have different KV, so that wrong sharing is seen.
pub fn kv_root(salt: Option<&str>) -> u64 {
    salt.unwrap_or("none").bytes().fold(3, |h, b| mix(h ^ u64::from(b)))
}

/// The token drawn for `position` by a row whose last position has the digest `kv`.
pub fn draw(seed: u64, position: u32, kv: u64) -> u32 {
    let x = mix(seed ^ mix(u64::from(position)) ^ kv);
    match x % 40 {
        0 => EOS,
        1 => STOP,
        _ => 3 + (x >> 20) as u32 % 50,
    }
}

/// The whole life of one request.
pub struct Oracle {
    pub tokens: Vec<u32>,
    /// Digest of each position.
    pub kv: Vec<u64>,
    prompt: usize,
    seed: u64,
    tagged: bool,
    root: u64,
}

impl Oracle {
    /// `tagged`: positions of the prompt and generated ones have different KV, as with different kernels.
    pub fn new(request: &Request, tagged: bool) -> Self {
        let mut oracle = Oracle {
            tokens: Vec::new(),
            kv: Vec::new(),
            prompt: request.prompt.len(),
            seed: request.params.seed,
            tagged,
            root: kv_root(request.cache_salt.as_deref()),
        };
        request.prompt.iter().for_each(|token| oracle.push(*token));
        oracle
    }

    /// Computes the sequence up to `len` tokens, past its end if need be: a row that ended unseen runs once more.
    pub fn grow_to(&mut self, len: usize) {
        while self.tokens.len() < len {
            let last = self.kv.last().copied().unwrap_or(self.root);
            self.push(draw(self.seed, self.tokens.len() as u32, last));
        }
    }

    /// Whether the request ends when `len` tokens are known, and why.
    pub fn end_at(&self, request: &Request, len: usize, max_model_len: u32) -> Option<FinishReason> {
        let (params, generated, token) = (&request.params, (len - self.prompt) as u32, self.tokens[len - 1]);
        let may_stop = generated >= params.min_tokens;
        if may_stop && token == EOS && !params.ignore_eos {
            Some(FinishReason::Stop { token: None })
        } else if may_stop && params.stop_token_ids.contains(&token) {
            Some(FinishReason::Stop { token: Some(token) })
        } else if generated == params.max_tokens || len as u32 == max_model_len {
            Some(FinishReason::Length)
        } else {
            None
        }
    }

    fn push(&mut self, token: u32) {
        let before = self.kv.last().copied().unwrap_or(self.root);
        let tag = u64::from(self.tagged && self.tokens.len() >= self.prompt);
        self.tokens.push(token);
        self.kv.push(kv_value(before, token, tag));
    }
}
