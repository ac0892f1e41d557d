//! NextInputs, PlanOnDevice.

use engine_core::backend::{AttnPlan, Mask, NextInputs};
use engine_core::{Result, Tensor};
use kernels::params;

use crate::mem::lock;
use crate::plan::{Bound, CudaPlan, HostMeta, window};
use crate::stream::CudaStream;

impl CudaStream {
    pub(super) fn next_inputs(&mut self, n: &NextInputs) -> Result<()> {
        let [_, groups, table_rows, pages] = n.tables.shape();
        let sequences = n.rows.len() as u32;
        let params = params::Next {
            prev: self.at(n.prev),
            accepted: self.at_or_null(n.accepted),
            src: self.at(n.src),
            staged: self.at(n.staged),
            rows: self.at(n.rows),
            start: self.at(n.start),
            cu_q: self.at(n.cu_q),
            tables: self.at(n.tables),
            ids: self.at(n.ids),
            positions: self.at(n.positions),
            slots: self.at(n.slots),
            kv_len: self.at(n.kv_len),
            tokens: n.src.len() as u32,
            sequences,
            groups,
            table_rows,
            pages,
            page_tokens: n.page_tokens,
        };
        self.launch("next_inputs", [sequences + 1, 1, 1], 64, 0, &params)
    }

    pub(super) fn plan_on_device(
        &mut self,
        plan: &AttnPlan,
        [rows, kv_len, cu_q]: [Tensor; 3],
        tables: Tensor,
    ) -> Result<()> {
        self.hold(plan.shared());
        let (p, spec) = (plan.inner::<CudaPlan>(), plan.spec());
        let sequences = rows.len() as u32;
        let [_, _, table_rows, pages] = tables.shape();
        let group_bytes = u64::from(spec.group) * u64::from(table_rows * pages) * 4;
        let meta = lock(&p.state).meta;
        // Without a host plan of these rows it is the capture of a decode step.
        let meta = match meta.rows == sequences {
            true => meta,
            false => HostMeta { rows: sequences, generated: sequences, tiles: 0, single: true },
        };
        let bound = Bound {
            rows: self.at(rows),
            kv_len: self.at(kv_len),
            cu_q: self.at(cu_q),
            table: self.at(tables) + group_bytes,
            pages,
            sequences,
            generated: meta.generated,
            tiles: meta.tiles,
            single: meta.single,
        };
        lock(&p.state).bound = bound;
        let params = params::Plan {
            rows: bound.rows,
            kv_len: bound.kv_len,
            cu_q: bound.cu_q,
            items: p.items.address(),
            counts: p.counts.address(),
            tiles: p.tiles.address(),
            generated: bound.generated,
            sequences,
            max_items: p.max_items,
            max_tiles: p.max_tiles,
            fixed_chunk: p.fixed_chunk,
            target_items: p.target_items,
            tile_tokens: p.tile_tokens,
            window: if spec.mask == Mask::Full { u32::MAX } else { window(spec.mask) },
        };
        self.launch("plan_attention", [1, 1, 1], 1024, 0, &params)
    }
}
