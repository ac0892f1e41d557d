//! The sampler's slots behind the seam: `UpdateSampler` records, and the rows of `Sample` in order.

use engine_core::backend::{SampleRow, SlotRecord};

use super::sample::{Logprobs, SlotState, logprobs, sample};

/// Operands of one `Sample`, read from the device.
pub struct Batch {
    /// [L, V]
    pub logits: Vec<f32>,
    pub vocab: usize,
    /// [L, 16]
    pub rows: Vec<u32>,
    /// [L]
    pub draft: Option<Vec<i32>>,
    /// [L, ceil(V / 32)]
    pub mask: Option<Vec<u32>>,
    /// Best ids wanted per row.
    pub top: Option<usize>,
}

/// What one `Sample` writes, by slot and by row.
#[derive(Default)]
pub struct Sampled {
    /// [L]
    pub ids: Vec<i32>,
    /// (slot, id) in order.
    pub last: Vec<(usize, i32)>,
    /// (slot, minus the drafts not accepted).
    pub accepted: Vec<(usize, i32)>,
    /// (row, its log-probabilities)
    pub logprobs: Vec<(usize, Logprobs)>,
}

/// Reads records until the one that ends the list, each replacing all its slot knew.
pub fn update(slots: &mut [SlotState], words: &[u32]) {
    let mut at = 0;
    while at < words.len() && words[at] != SlotRecord::END {
        let head: [u32; SlotRecord::HEAD] = std::array::from_fn(|i| words[at + i]);
        at += SlotRecord::HEAD;
        let mut take = |n: u32| {
            at += n as usize;
            words[at - n as usize..at].to_vec()
        };
        let [slot, prompt, output, bias, allowed, stops, _, bad_words] = head;
        let (prompt, output, ids, values) = (take(prompt), take(output), take(bias), take(bias));
        let allowed = (allowed != SlotRecord::NO_ALLOWED).then(|| take(allowed));
        let (stops, bad_words) = (take(stops), take(bad_words));
        let bias = ids.into_iter().zip(values.into_iter().map(f32::from_bits)).collect();
        slots[slot as usize] =
            SlotState { prompt, output, bias, allowed, stops, bad_words: split_words(&bad_words) };
    }
}

/// Samples every row in order. Rows of one slot follow each other; drafts are accepted up to the first that differs
/// from the token drawn, and the rows after it give -1 and change nothing. So do rows of padding (slot < 0).
pub fn sample_batch(slots: &mut [SlotState], batch: &Batch) -> Sampled {
    let mut done = Sampled::default();
    let row_of = |i: usize| SampleRow::read(&batch.rows[i * SampleRow::WORDS..]);
    let count = batch.logits.len() / batch.vocab;
    let mut end = 0;
    while end < count {
        let (start, slot) = (end, row_of(end).slot);
        end = (start..count).find(|i| row_of(*i).slot != slot).unwrap_or(count);
        let Ok(slot) = usize::try_from(slot) else {
            done.ids.resize(end, -1);
            continue;
        };
        for i in start..end {
            let id = sample_row(&mut slots[slot], batch, i, &mut done);
            done.last.push((slot, id));
            done.ids.push(id);
            if batch.draft.as_ref().is_some_and(|d| d[i] >= 0 && d[i] != id) {
                break;
            }
        }
        done.accepted.push((slot, done.ids.len() as i32 - end as i32));
        done.ids.resize(end, -1);
    }
    done
}

fn sample_row(state: &mut SlotState, batch: &Batch, i: usize, done: &mut Sampled) -> i32 {
    let row = SampleRow::read(&batch.rows[i * SampleRow::WORDS..]);
    let raw = &batch.logits[i * batch.vocab..][..batch.vocab];
    let words = batch.vocab.div_ceil(32);
    let mask = batch.mask.as_ref().map(|m| &m[i * words..][..words]);
    let id = sample(&row, state, mask, &mut raw.to_vec());
    if let Some(top) = batch.top {
        done.logprobs.push((i, logprobs(raw, id, top)));
    }
    state.output.push(id);
    id as i32
}

fn split_words(mut packed: &[u32]) -> Vec<Vec<u32>> {
    let mut words = Vec::new();
    while let Some((length, rest)) = packed.split_first() {
        let (word, rest) = rest.split_at(*length as usize);
        words.push(word.to_vec());
        packed = rest;
    }
    words
}
