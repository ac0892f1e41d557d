//! The attention plan on the "device": a step's sequences and the items that attention is split into.

use std::cell::UnsafeCell;
use std::sync::{Arc, Mutex, PoisonError};

use engine_core::backend::{AttnSpec, StepCaps};

use crate::memory::Region;

/// Rows (query tokens × heads of a group) that one item of attention handles at most.
pub(crate) const ITEM_ROWS: usize = 64;

/// What `PlanOnDevice` leaves for `PagedAttention`. Touched only by commands of one stream, in order.
pub(crate) struct PlanState {
    data: UnsafeCell<PlanData>,
}

// SAFETY: `PlanOnDevice` writes it as a serial phase; `PagedAttention` reads it after a barrier.
unsafe impl Sync for PlanState {}
// SAFETY: the pointer in it is only followed by kernels, under the streams' order.
unsafe impl Send for PlanState {}

/// A step's sequences.
pub(crate) struct PlanData {
    pub sequences: Vec<Sequence>,
    pub items: Vec<Item>,
    /// Page table of the plan's group: row slots × pages.
    pub table: *const i32,
    pub table_stride: usize,
    pub table_pages: usize,
    /// Tokens that belong to a sequence: the first ones.
    pub covered: usize,
    tokens_per_item: usize,
}

/// One sequence of a step.
#[derive(Clone, Copy)]
pub(crate) struct Sequence {
    /// Row slot; negative is padding.
    pub row: i32,
    /// First query token.
    pub first: usize,
    pub q_len: usize,
    pub kv_len: usize,
}

/// Some query tokens of a sequence.
#[derive(Clone, Copy)]
pub(crate) struct Item {
    pub sequence: u32,
    /// From the sequence's first.
    pub first: u32,
    pub tokens: u32,
}

impl PlanState {
    /// Room for the largest step of `caps`.
    pub fn new(spec: &AttnSpec, caps: &StepCaps) -> Self {
        let group = (spec.q_heads / spec.kv_heads.max(1)).max(1) as usize;
        let tokens_per_item = (ITEM_ROWS / group).max(1);
        let (rows, tokens) = (caps.rows as usize + 1, caps.tokens as usize);
        PlanState {
            data: UnsafeCell::new(PlanData {
                sequences: Vec::with_capacity(rows),
                items: Vec::with_capacity(rows + tokens / tokens_per_item + 1),
                table: std::ptr::null(),
                table_stride: 0,
                table_pages: 0,
                covered: 0,
                tokens_per_item,
            }),
        }
    }

    /// The data.
    ///
    /// # Safety
    /// Called by kernels only, under the order that `Sync` above states.
    #[expect(clippy::mut_from_ref, reason = "the stream's order is the lock")]
    pub unsafe fn data(&self) -> &mut PlanData {
        // SAFETY: the caller's contract.
        unsafe { &mut *self.data.get() }
    }
}

impl PlanData {
    /// Adds a sequence and its items.
    pub fn push(&mut self, row: i32, first: usize, q_len: usize, kv_len: usize) {
        let sequence = self.sequences.len() as u32;
        self.sequences.push(Sequence { row, first, q_len, kv_len });
        let mut at = 0;
        while at < q_len {
            let tokens = self.tokens_per_item.min(q_len - at);
            self.items.push(Item { sequence, first: at as u32, tokens: tokens as u32 });
            at += tokens;
        }
    }

    /// Orders items by falling cost, so that the last ones to be claimed are short.
    pub fn finish(&mut self) {
        let sequences = &self.sequences;
        let cost = |i: &Item| {
            let s = &sequences[i.sequence as usize];
            let last = s.kv_len.saturating_sub(s.q_len) + (i.first + i.tokens) as usize;
            std::cmp::Reverse(last * i.tokens as usize)
        };
        self.items.sort_unstable_by_key(cost);
    }
}

/// What an `AttnPlan` holds.
pub(crate) struct Plan {
    pub state: PlanState,
    tables: Mutex<Vec<Arc<Region>>>,
}

impl Plan {
    /// A plan without sequences.
    pub fn new(spec: &AttnSpec, caps: &StepCaps) -> Self {
        Plan { state: PlanState::new(spec, caps), tables: Mutex::new(Vec::new()) }
    }

    /// Keeps the tables that the plan points to.
    pub fn hold(&self, tables: Arc<Region>) {
        let mut held = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if !held.iter().any(|t| Arc::ptr_eq(t, &tables)) {
            held.push(tables);
        }
    }
}
