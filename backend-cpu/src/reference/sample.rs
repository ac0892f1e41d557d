//! Sample and LogProbs: from raw logits of one row to a token.
//!
//! Order: raw log-probabilities -> allowed ids, bad words, min tokens, bias, grammar mask -> penalties ->
//! temperature -> min-p -> top-k, top-p -> draw. A masked id has a logit of -∞ from then on.

use engine_core::backend::SampleRow;

use super::philox::gumbel;
use super::topk::best_first;

/// What a row slot remembers about its request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SlotState {
    /// Prompt ids, when the repetition penalty needs them.
    pub prompt: Vec<u32>,
    /// Ids generated so far.
    pub output: Vec<u32>,
    pub bias: Vec<(u32, f32)>,
    pub allowed: Option<Vec<u32>>,
    /// Ids masked while `SampleRow::MASK_STOPS` is set.
    pub stops: Vec<u32>,
    pub bad_words: Vec<Vec<u32>>,
}

/// Log-probabilities of one position: the token and the best ids, in the columns of `LogprobsOut`.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// [1 + top]: the given id, then the best ids, best first, ties to the smaller id.
    pub ids: Vec<i32>,
    /// [1 + top]
    pub values: Vec<f32>,
    /// 1 + the number of ids that are strictly more likely than the given one.
    pub rank: i32,
}

/// The token of one row; logits [V] are changed in place as the rules say. `mask` [ceil(V / 32)]: bit set =
/// allowed, read under `SampleRow::MASKED`.
pub fn sample(row: &SampleRow, state: &SlotState, mask: Option<&[u32]>, logits: &mut [f32]) -> u32 {
    apply_rules(row, state, mask, logits);
    apply_penalties(row, state, logits);
    if row.flags & SampleRow::GREEDY != 0 {
        return best(logits);
    }
    logits.iter_mut().for_each(|l| *l /= row.temperature);
    apply_min_p(row.min_p, logits);
    apply_top_k_top_p(row.top_k, row.top_p, logits);
    draw(row.seed, row.position, logits)
}

/// Log-probabilities of raw logits [V] for `id` and the `top` best ids.
pub fn logprobs(logits: &[f32], id: u32, top: usize) -> Logprobs {
    let log_sum = log_sum_exp(logits);
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| best_first(logits, *a, *b));
    let ids: Vec<usize> = std::iter::once(id as usize).chain(order.into_iter().take(top)).collect();
    let own = logits[id as usize];
    Logprobs {
        values: ids.iter().map(|i| (f64::from(logits[*i]) - log_sum) as f32).collect(),
        ids: ids.iter().map(|i| *i as i32).collect(),
        rank: 1 + logits.iter().filter(|l| **l > own).count() as i32,
    }
}

/// Allowed ids, bad words, bias (`RULES`), stop ids (`MASK_STOPS`) and the uploaded mask (`MASKED`).
pub fn apply_rules(row: &SampleRow, state: &SlotState, mask: Option<&[u32]>, logits: &mut [f32]) {
    let masked = f32::NEG_INFINITY;
    let rules = row.flags & SampleRow::RULES != 0;
    if let (true, Some(allowed)) = (rules, &state.allowed) {
        for id in (0..logits.len()).filter(|id| !allowed.contains(&(*id as u32))) {
            logits[id] = masked;
        }
    }
    for word in state.bad_words.iter().filter(|_| rules) {
        // The last id of a word is masked when the output ends with the ids before it.
        if let Some((last, before)) = word.split_last()
            && state.output.ends_with(before)
        {
            logits[*last as usize] = masked;
        }
    }
    if row.flags & SampleRow::MASK_STOPS != 0 {
        state.stops.iter().for_each(|id| logits[*id as usize] = masked);
    }
    for (id, bias) in state.bias.iter().filter(|_| rules) {
        logits[*id as usize] += bias;
    }
    if let (true, Some(mask)) = (row.flags & SampleRow::MASKED != 0, mask) {
        for id in (0..logits.len()).filter(|id| mask[id / 32] >> (id % 32) & 1 == 0) {
            logits[id] = masked;
        }
    }
}

/// Repetition over prompt and output, then frequency and presence over the output.
pub fn apply_penalties(row: &SampleRow, state: &SlotState, logits: &mut [f32]) {
    if row.flags & SampleRow::PENALTIES == 0 {
        return;
    }
    for (id, logit) in logits.iter_mut().enumerate() {
        let count = |ids: &[u32]| ids.iter().filter(|i| **i as usize == id).count();
        let generated = count(&state.output);
        if generated + count(&state.prompt) > 0 {
            *logit = if *logit > 0.0 { *logit / row.repetition } else { *logit * row.repetition };
        }
        if generated > 0 {
            *logit -= row.frequency * generated as f32;
            *logit -= row.presence;
        }
    }
}

/// Masks ids whose probability is below `min_p` times the greatest.
pub fn apply_min_p(min_p: f32, logits: &mut [f32]) {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if min_p > 0.0 {
        let low = |l: f32| f64::from(l - highest).exp() < f64::from(min_p);
        logits.iter_mut().filter(|l| low(**l)).for_each(|l| *l = f32::NEG_INFINITY);
    }
}

/// Keeps the `top_k` best ids (0: all), then of those the smallest prefix, most likely first, whose mass reaches
/// `top_p` of theirs (≥ 1: all).
pub fn apply_top_k_top_p(top_k: u32, top_p: f32, logits: &mut [f32]) {
    let mut order: Vec<usize> = (0..logits.len()).filter(|id| logits[*id] > f32::NEG_INFINITY).collect();
    order.sort_by(|a, b| best_first(logits, *a, *b));
    if top_k > 0 {
        order.truncate(top_k as usize);
    }
    if top_p < 1.0 {
        let highest = order.first().map_or(0.0, |id| logits[*id]);
        let weight = |id: usize| f64::from(logits[id] - highest).exp();
        let wanted = f64::from(top_p) * order.iter().map(|id| weight(*id)).sum::<f64>();
        let mut mass = 0.0;
        let reached = order.iter().position(|id| {
            mass += weight(*id);
            mass >= wanted
        });
        order.truncate(reached.map_or(order.len(), |i| i + 1));
    }
    for id in (0..logits.len()).filter(|id| !order.contains(id)).collect::<Vec<_>>() {
        logits[id] = f32::NEG_INFINITY;
    }
}

/// Gumbel-max: the id whose logit plus noise is greatest is a sample of softmax(logits).
pub fn draw(seed: u64, position: u32, logits: &[f32]) -> u32 {
    let noisy = |(id, l): (usize, &f32)| (f64::from(*l) + gumbel(seed, position, id as u32)) as f32;
    best(&logits.iter().enumerate().map(noisy).collect::<Vec<_>>())
}

/// The id of the greatest value; the smallest of equals.
pub fn best(values: &[f32]) -> u32 {
    (0..values.len()).min_by(|a, b| best_first(values, *a, *b)).unwrap_or(0) as u32
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from(l - highest).exp()).sum();
    f64::from(highest) + sum.ln()
}
