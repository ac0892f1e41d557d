//! What row slots remember for sampling, and UpdateSampler, which a request entering a slot brings.
#![allow(unsafe_op_in_unsafe_fn, reason = "the contract of `Kernel::run`")]

use std::cell::UnsafeCell;
use std::sync::Arc;

use engine_core::Result;
use engine_core::backend::{OpKind, SampleRow, SlotRecord, StepCaps};

use super::Kernel;
use crate::memory::{Memory, Region, View};
use crate::simd::Simd;
use crate::threads::Worker;

/// Bit of a count that says the id is in the prompt; the rest counts how often it was generated.
pub(crate) const IN_PROMPT: u16 = 1 << 15;

/// Per-slot sampling state. Touched only by commands of one stream, in order.
pub(crate) struct SamplerState {
    /// [R, V] u16
    counts: Arc<Region>,
    slots: Vec<UnsafeCell<Slot>>,
    pub vocab: usize,
}

// SAFETY: a slot is touched by one worker at a time: by UpdateSampler as a serial phase, and by Sample, whose workers
// claim all rows of a slot together.
unsafe impl Sync for SamplerState {}

/// What a slot knows of its request.
#[derive(Default)]
pub(crate) struct Slot {
    pub bias: Vec<(u32, f32)>,
    pub allowed: Vec<u32>,
    pub all_allowed: bool,
    pub stops: Vec<u32>,
    /// Per word its length and ids.
    pub bad_words: Vec<u32>,
    /// The last generated ids, as many as the longest bad word needs.
    pub tail: Vec<u32>,
    tail_len: usize,
    /// Whether any count is not zero.
    counted: bool,
}

impl SamplerState {
    /// For the slots of `caps`.
    pub fn new(memory: &Arc<Memory>, caps: &StepCaps) -> Result<Self> {
        let (rows, vocab) = (caps.rows as usize, caps.vocab as usize);
        let hint = "lower --max-num-seqs";
        let counts = memory.allocate(rows * vocab * 2, "penalty counts", hint)?;
        let slot = || UnsafeCell::new(Slot { all_allowed: true, ..Slot::default() });
        Ok(SamplerState { counts, slots: (0..rows).map(|_| slot()).collect(), vocab })
    }

    /// A slot.
    ///
    /// # Safety
    /// By kernels only, under the order that `Sync` above states.
    #[expect(clippy::mut_from_ref, reason = "the stream's order is the lock")]
    pub unsafe fn slot(&self, slot: usize) -> &mut Slot {
        assert!(slot < self.slots.len(), "row slot {slot} of {}", self.slots.len());
        &mut *self.slots[slot].get()
    }

    /// Counts of a slot, [V].
    pub fn counts(&self, slot: usize) -> *mut u16 {
        self.counts.base().cast::<u16>().wrapping_add(slot * self.vocab)
    }

    /// The slot has generated `id`.
    pub unsafe fn push(&self, slot: usize, flags: u32, id: u32) {
        let state = self.slot(slot);
        if flags & SampleRow::PENALTIES != 0 {
            let count = self.counts(slot).add(id as usize);
            if *count & !IN_PROMPT < IN_PROMPT - 1 {
                *count += 1;
            }
            state.counted = true;
        }
        state.remember(id);
    }

    unsafe fn update(&self, record: &[u32; SlotRecord::HEAD], mut words: &[u32]) {
        let [slot, prompt, output, bias, allowed, stops, _, bad_words] = *record;
        let state = self.slot(slot as usize);
        let counts = self.counts(slot as usize);
        if state.counted {
            std::ptr::write_bytes(counts, 0, self.vocab);
        }
        let mut take = |n: u32| {
            let (first, rest) = words.split_at(n as usize);
            words = rest;
            first
        };
        let (prompt, output, ids, values) = (take(prompt), take(output), take(bias), take(bias));
        state.all_allowed = allowed == SlotRecord::NO_ALLOWED;
        let allowed = if state.all_allowed { &[] } else { take(allowed) };
        let (stops, bad_words) = (take(stops), take(bad_words));
        let check = |id: &u32| assert!((*id as usize) < self.vocab, "token id {id} of {}", self.vocab);
        [prompt, output, ids, allowed, stops].iter().for_each(|list| list.iter().for_each(check));
        state.bias.clear();
        state.bias.extend(ids.iter().copied().zip(values.iter().map(|v| f32::from_bits(*v))));
        replace(&mut state.allowed, allowed);
        replace(&mut state.stops, stops);
        replace(&mut state.bad_words, bad_words);
        state.counted = !prompt.is_empty() || !output.is_empty();
        for id in prompt {
            *counts.add(*id as usize) |= IN_PROMPT;
        }
        for id in output {
            *counts.add(*id as usize) += 1;
        }
        state.tail_len = longest_word(bad_words).saturating_sub(1);
        state.tail.clear();
        state.tail.reserve(state.tail_len);
        output.iter().for_each(|id| state.remember(*id));
    }
}

impl Slot {
    fn remember(&mut self, id: u32) {
        if self.tail_len == 0 {
            return;
        }
        if self.tail.len() == self.tail_len {
            self.tail.remove(0);
        }
        self.tail.push(id);
    }

    /// Calls `f` with the last id of each bad word whose other ids end the output.
    pub fn each_bad_id(&self, mut f: impl FnMut(u32)) {
        let mut words = self.bad_words.as_slice();
        while let Some((length, rest)) = words.split_first() {
            let (word, rest) = rest.split_at((*length as usize).min(rest.len()));
            if let Some((last, before)) = word.split_last()
                && self.tail.ends_with(before)
            {
                f(*last);
            }
            words = rest;
        }
    }
}

fn replace(list: &mut Vec<u32>, with: &[u32]) {
    list.clear();
    list.extend_from_slice(with);
}

fn longest_word(mut words: &[u32]) -> usize {
    let mut longest = 0;
    while let Some((length, rest)) = words.split_first() {
        longest = longest.max(*length as usize);
        words = &rest[(*length as usize).min(rest.len())..];
    }
    longest
}

/// Records into slots.
pub(crate) struct UpdateSampler {
    pub sampler: *const SamplerState,
    pub records: View,
}

impl Kernel for UpdateSampler {
    const OP: OpKind = OpKind::UpdateSampler;
    fn serial(&self, _: u32) -> bool {
        true
    }
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, _: &Worker<'_>, _: u32) {
        let len = self.records.rows() * self.records.cols();
        let mut words = std::slice::from_raw_parts(self.records.ptr::<u32>(), len);
        while let Some((head, rest)) = words.split_first_chunk::<{ SlotRecord::HEAD }>() {
            if head[0] == SlotRecord::END {
                break;
            }
            let allowed = if head[4] == SlotRecord::NO_ALLOWED { 0 } else { head[4] };
            let length = [head[1], head[2], head[3], head[3], allowed, head[5], head[7]];
            let length = length.iter().map(|n| *n as usize).sum::<usize>();
            assert!(length <= rest.len(), "a sampler record of {length} words, {} are there", rest.len());
            let (record, rest) = rest.split_at(length);
            (*self.sampler).update(head, record);
            words = rest;
        }
    }
    unsafe fn spoil(&self) {
        let first = *self.records.ptr::<u32>();
        if first != SlotRecord::END {
            let slot = (*self.sampler).slot(first as usize);
            slot.bias.iter_mut().for_each(|b| b.1 = -b.1);
            slot.allowed.truncate(slot.allowed.len() / 2);
            slot.stops.clear();
            slot.bad_words.clear();
            let counts = (*self.sampler).counts(first as usize);
            for id in 0..(*self.sampler).vocab {
                *counts.add(id) = 0;
            }
        }
    }
}
