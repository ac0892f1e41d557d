//! NextInputs and PlanOnDevice: the step's integers, made where the samples are.
#![allow(unsafe_op_in_unsafe_fn, reason = "the contract of `Kernel::run`")]

use engine_core::backend::OpKind;

use super::{Kernel, spoil_last};
use crate::memory::View;
use crate::plan::PlanState;
use crate::simd::Simd;
use crate::threads::Worker;

/// See `engine_core::backend::NextInputs`.
pub(crate) struct NextInputs {
    pub prev: View,
    pub accepted: Option<View>,
    pub src: View,
    pub staged: View,
    pub rows: View,
    pub start: View,
    pub cu_q: View,
    /// [G, R, pages]
    pub tables: View,
    pub page_tokens: usize,
    pub ids: View,
    pub positions: View,
    /// [G, T]
    pub slots: View,
    pub kv_len: View,
}

impl Kernel for NextInputs {
    const OP: OpKind = OpKind::NextInputs;
    fn serial(&self, _: u32) -> bool {
        true
    }
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, _: &Worker<'_>, _: u32) {
        let tokens = self.ids.rows() * self.ids.cols();
        self.pad(0, tokens);
        for s in 0..self.rows.cols() {
            self.sequence(s, tokens);
        }
    }
    unsafe fn spoil(&self) {
        let tokens = self.ids.cols();
        for t in 0..tokens {
            *self.ids.ptr::<i32>().add(t) ^= 1;
        }
        spoil_last(&self.kv_len);
    }
}

impl NextInputs {
    unsafe fn sequence(&self, s: usize, tokens: usize) {
        let get = |v: &View, i: usize| *v.ptr::<i32>().add(i);
        let (first, end) = (get(&self.cu_q, s), get(&self.cu_q, s + 1));
        assert!(
            0 <= first && first <= end && end as usize <= tokens,
            "cu_q {first}..{end} of {tokens} tokens"
        );
        let row = get(&self.rows, s);
        *self.kv_len.ptr::<i32>().add(s) = 0;
        if row < 0 || first == end {
            return;
        }
        let row = row as usize;
        let [_, groups, slots, pages] = self.tables.shape.map(|d| d as usize);
        assert!(row < slots, "row slot {row} of {slots}");
        let shift = self.accepted.as_ref().map_or(0, |a| get(a, row));
        let start = get(&self.start, s) + shift;
        for t in first as usize..end as usize {
            let position = start + (t as i32 - first);
            assert!(position >= 0, "position {position} of sequence {s}");
            let src = get(&self.src, t);
            assert!(src < self.prev.cols() as i32, "source slot {src} of {}", self.prev.cols());
            let id = if src < 0 { get(&self.staged, t) } else { get(&self.prev, src as usize) };
            *self.ids.ptr::<i32>().add(t) = id;
            *self.positions.ptr::<i32>().add(t) = position;
            let (page, offset) = (position as usize / self.page_tokens, position as usize % self.page_tokens);
            assert!(page < pages, "position {position} is past a page table of {pages} pages");
            for g in 0..groups {
                let entry = *self.tables.at::<i32>(g, row).add(page);
                let slot = entry * self.page_tokens as i32 + offset as i32;
                *self.slots.row::<i32>(g).add(t) = slot;
            }
        }
        *self.kv_len.ptr::<i32>().add(s) = start + (end - first);
    }

    unsafe fn pad(&self, from: usize, to: usize) {
        for t in from..to {
            *self.ids.ptr::<i32>().add(t) = -1;
            *self.positions.ptr::<i32>().add(t) = 0;
            for g in 0..self.slots.rows() {
                *self.slots.row::<i32>(g).add(t) = -1;
            }
        }
    }
}

/// Copies a step's lengths and the place of its tables into the plan.
pub(crate) struct PlanOnDevice {
    pub plan: *const PlanState,
    pub rows: View,
    pub kv_len: View,
    pub cu_q: View,
    /// [G, R, pages]
    pub tables: View,
    pub group: usize,
}

impl Kernel for PlanOnDevice {
    const OP: OpKind = OpKind::PlanOnDevice;
    fn serial(&self, _: u32) -> bool {
        true
    }
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, _: &Worker<'_>, _: u32) {
        let plan = (*self.plan).data();
        let sequences = self.rows.cols();
        plan.items.clear();
        plan.sequences.clear();
        plan.table = self.tables.at::<i32>(self.group, 0);
        plan.table_stride = self.tables.stride[2] as usize;
        plan.table_pages = self.tables.cols();
        for s in 0..sequences {
            let get = |v: &View, i: usize| *v.ptr::<i32>().add(i);
            let (first, end) = (get(&self.cu_q, s), get(&self.cu_q, s + 1));
            let (row, kv_len) = (get(&self.rows, s), get(&self.kv_len, s));
            assert!(0 <= first && first <= end, "cu_q {first}..{end}");
            assert!(row < self.tables.shape[2] as i32, "row slot {row} of {}", self.tables.shape[2]);
            plan.push(row, first as usize, (end - first) as usize, kv_len.max(0) as usize);
        }
        plan.covered =
            if sequences == 0 { 0 } else { (*self.cu_q.ptr::<i32>().add(sequences)).max(0) as usize };
        plan.finish();
    }
    unsafe fn spoil(&self) {
        let plan = (*self.plan).data();
        for s in &mut plan.sequences {
            s.kv_len = s.kv_len.saturating_sub(1);
        }
    }
}
