//! Embed, GatherRows, ScatterRows, Copy, CopyPages, UpdateTables.
#![allow(unsafe_op_in_unsafe_fn, reason = "the contract of `Kernel::run`")]

use engine_core::DType;
use engine_core::backend::OpKind;
use engine_core::backend::ScatterMode;

use super::quantized_expand;
use super::{BLOCK, Kernel, MyRows, SERIAL_ELEMENTS, load_block, spoil_last, store_block, zip_block};
use crate::memory::View;
use crate::simd::Simd;
use crate::strips::{STRIP, Strips};
use crate::threads::Worker;
use crate::weights::{Layout, PANEL};

/// out[t] = table[ids[t]].
pub(crate) struct Embed {
    pub table: *const u8,
    pub layout: Layout,
    pub dtype: DType,
    pub vocab: usize,
    pub panel_bytes: usize,
    /// Of a quantized table, else null.
    pub strips: *const Strips,
    pub ids: View,
    pub out: View,
}

impl Kernel for Embed {
    const OP: OpKind = OpKind::Embed;
    fn serial(&self, _: u32) -> bool {
        self.out.rows() * self.out.cols() <= SERIAL_ELEMENTS / 4
    }
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, w: &Worker<'_>, phase: u32) {
        let width = self.out.cols();
        let mut rows = MyRows::new(w, self.serial(phase), self.out.rows(), width);
        while let Some(t) = rows.next() {
            let id = *self.ids.ptr::<i32>().add(t);
            assert!(id < self.vocab as i32, "token id {id} in a vocabulary of {}", self.vocab);
            let mut block = [0.0; BLOCK];
            for i in (0..width).step_by(BLOCK) {
                let n = BLOCK.min(width - i);
                if id >= 0 {
                    self.read::<S>(id as usize, i, n, &mut block);
                }
                store_block::<S, _>(self.out.dtype, self.out.row(t), i, n, &block);
            }
        }
    }
    unsafe fn spoil(&self) {
        spoil_last(&self.out)
    }
}

impl Embed {
    #[inline(always)]
    unsafe fn read<S: Simd>(&self, id: usize, i: usize, n: usize, block: &mut [f32; BLOCK]) {
        if self.layout == Layout::Rows {
            let row = self.table.add(id * self.out.cols() * self.dtype.size_bytes());
            return load_block::<S, _>(self.dtype, row, i, n, block);
        }
        if self.layout == Layout::Strips {
            return self.read_strip(id, i, n, block);
        }
        let panel = self.table.add(id / PANEL * self.panel_bytes);
        let lane = id % PANEL;
        for (j, x) in block.iter_mut().enumerate().take(n) {
            let k = i + j;
            *x = match self.dtype {
                DType::F32 => *panel.cast::<f32>().add(k * PANEL + lane),
                DType::F16 => (*panel.cast::<half::f16>().add(k * PANEL + lane)).to_f32(),
                _ => (*panel.cast::<half::bf16>().add((k / 2 * PANEL + lane) * 2 + k % 2)).to_f32(),
            };
        }
    }
}

impl Embed {
    unsafe fn read_strip(&self, id: usize, i: usize, n: usize, block: &mut [f32; BLOCK]) {
        let strips = &*self.strips;
        let strip = strips.strips[id / STRIP];
        let Some(format) = strip.format else { return };
        for (j, x) in block.iter_mut().enumerate().take(n) {
            let f = &strips.formats[format];
            *x = quantized_expand::number(f, self.table.add(strip.at), i + j, id % STRIP);
        }
    }
}

/// out[i] = x[rows[i]], zeros where the row is negative.
pub(crate) struct GatherRows {
    pub x: View,
    pub rows: View,
    pub out: View,
}

impl Kernel for GatherRows {
    const OP: OpKind = OpKind::GatherRows;
    fn serial(&self, _: u32) -> bool {
        self.out.rows() * self.out.cols() <= SERIAL_ELEMENTS
    }
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, w: &Worker<'_>, phase: u32) {
        let (width, bytes) = (self.out.cols(), self.out.cols() * self.out.dtype.size_bytes());
        let mut rows = MyRows::new(w, self.serial(phase), self.out.rows(), width);
        while let Some(i) = rows.next() {
            let row = *self.rows.ptr::<i32>().add(i);
            assert!(row < self.x.rows() as i32, "row {row} of {}", self.x.rows());
            if row < 0 {
                std::ptr::write_bytes(self.out.row::<u8>(i), 0, bytes);
            } else {
                std::ptr::copy_nonoverlapping(self.x.row::<u8>(row as usize), self.out.row::<u8>(i), bytes);
            }
        }
    }
    unsafe fn spoil(&self) {
        spoil_last(&self.out)
    }
}

/// out[rows[i]] = or += x[i]. One worker: rows may repeat.
pub(crate) struct ScatterRows {
    pub x: View,
    pub rows: View,
    pub mode: ScatterMode,
    pub out: View,
}

impl Kernel for ScatterRows {
    const OP: OpKind = OpKind::ScatterRows;
    fn serial(&self, _: u32) -> bool {
        true
    }
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, _: &Worker<'_>, _: u32) {
        let width = self.x.cols();
        for i in 0..self.x.rows() {
            let row = *self.rows.ptr::<i32>().add(i);
            assert!(row < self.out.rows() as i32, "row {row} of {}", self.out.rows());
            if row < 0 {
                continue;
            }
            let (mut a, mut b) = ([0.0; BLOCK], [0.0; BLOCK]);
            for c in (0..width).step_by(BLOCK) {
                let n = BLOCK.min(width - c);
                load_block::<S, _>(self.x.dtype, self.x.row(i), c, n, &mut a);
                if self.mode == ScatterMode::Add {
                    load_block::<S, _>(self.out.dtype, self.out.row(row as usize), c, n, &mut b);
                    zip_block::<S, _>(
                        &mut a,
                        &b,
                        n,
                        #[inline(always)]
                        |x, y| S::add(y, x),
                    );
                }
                store_block::<S, _>(self.out.dtype, self.out.row(row as usize), c, n, &a);
            }
        }
    }
    unsafe fn spoil(&self) {
        spoil_last(&self.out)
    }
}

/// Element copy, converting between floating-point types.
pub(crate) struct Copy {
    pub x: View,
    pub out: View,
    pub op: OpKind,
}

impl Kernel for Copy {
    const OP: OpKind = OpKind::Copy;
    fn stands_for(&self) -> OpKind {
        self.op
    }
    fn serial(&self, _: u32) -> bool {
        self.out.rows() * self.out.cols() <= SERIAL_ELEMENTS
    }
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, w: &Worker<'_>, phase: u32) {
        let width = self.out.cols();
        let mut rows = MyRows::new(w, self.serial(phase), self.out.rows(), width);
        while let Some(r) = rows.next() {
            if self.x.dtype == self.out.dtype {
                let bytes = width * self.out.dtype.size_bytes();
                std::ptr::copy(self.x.row::<u8>(r), self.out.row::<u8>(r), bytes);
                continue;
            }
            let mut block = [0.0; BLOCK];
            for i in (0..width).step_by(BLOCK) {
                let n = BLOCK.min(width - i);
                load_block::<S, _>(self.x.dtype, self.x.row(r), i, n, &mut block);
                store_block::<S, _>(self.out.dtype, self.out.row(r), i, n, &block);
            }
        }
    }
    unsafe fn spoil(&self) {
        spoil_last(&self.out)
    }
}

/// Whole pages inside the pool.
pub(crate) struct CopyPages {
    pub pool: *mut u8,
    pub page_bytes: usize,
    pub pages: usize,
    pub pairs: View,
}

impl Kernel for CopyPages {
    const OP: OpKind = OpKind::CopyPages;
    fn serial(&self, _: u32) -> bool {
        true
    }
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, _: &Worker<'_>, _: u32) {
        for i in 0..self.pairs.rows() {
            let pair = self.pairs.row::<i32>(i);
            let (from, to) = (*pair, *pair.add(1));
            if from < 0 || to < 0 {
                continue;
            }
            let (from, to) = (from as usize, to as usize);
            assert!(from < self.pages && to < self.pages, "page {from} or {to} of {}", self.pages);
            let (from, to) = (self.pool.add(from * self.page_bytes), self.pool.add(to * self.page_bytes));
            std::ptr::copy(from, to, self.page_bytes);
        }
    }
    unsafe fn spoil(&self) {
        let pair = self.pairs.row::<i32>(self.pairs.rows().saturating_sub(1));
        if self.pairs.rows() > 0 && *pair.add(1) >= 0 {
            spoil_bytes(self.pool.add((*pair.add(1) as usize) * self.page_bytes), self.page_bytes);
        }
    }
}

/// tables[pairs[i].0] = pairs[i].1.
pub(crate) struct UpdateTables {
    pub pairs: View,
    pub tables: View,
}

impl Kernel for UpdateTables {
    const OP: OpKind = OpKind::UpdateTables;
    fn serial(&self, _: u32) -> bool {
        true
    }
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, _: &Worker<'_>, _: u32) {
        let entries = self.tables.rows() * self.tables.cols();
        for i in 0..self.pairs.rows() {
            let pair = self.pairs.row::<i32>(i);
            let index = *pair;
            if index < 0 {
                continue;
            }
            assert!((index as usize) < entries, "table entry {index} of {entries}");
            *self.tables.ptr::<i32>().add(index as usize) = *pair.add(1);
        }
    }
    unsafe fn spoil(&self) {
        for i in 0..self.pairs.rows() {
            let index = *self.pairs.row::<i32>(i);
            if index >= 0 {
                *self.tables.ptr::<i32>().add(index as usize) += 1;
            }
        }
    }
}

/// Flips the top bits of every 16-bit word.
pub(crate) unsafe fn spoil_bytes(at: *mut u8, bytes: usize) {
    for i in (1..bytes).step_by(2) {
        *at.add(i) ^= 0x41;
    }
}
