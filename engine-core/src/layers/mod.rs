//! Network layers written once against the seam. They never name a device or a weight format.
//!
//! Layers hand on [`Hidden`]; whoever norms next resolves the pending delta, so that a collective or a norm can
//! fuse with its neighbour.

pub mod attention;
pub mod decoder;
pub mod mlp;
pub mod rope;

use crate::backend::{AttnPlan, KvPool};
use crate::tensor::{DType, Tensor};

/// The residual stream between layers: `residual + delta`, both [T, H].
#[derive(Clone, Copy)]
pub struct Hidden {
    pub residual: Tensor,
    /// Not yet added.
    pub delta: Option<Tensor>,
}

/// What every layer of one step shares.
#[derive(Clone, Copy)]
pub struct StepContext<'a> {
    /// [T] i32
    pub positions: Tensor,
    /// [G, T] i32: cache slots per KV group.
    pub slots: Tensor,
    /// One plan per KV group.
    pub plans: &'a [AttnPlan],
    pub kv: &'a KvPool,
    /// Type of activations.
    pub dtype: DType,
}

impl StepContext<'_> {
    /// Cache slots of one group: [T] i32.
    pub fn slots_of(&self, group: u32) -> Tensor {
        self.slots.rows_at(group, 1)
    }
}
