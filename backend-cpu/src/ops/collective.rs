//! Collectives. A group of one rank needs no communication: reductions are nothing, gathers are copies
//! ([`super::movement::Copy`] under the collective's name).
#![allow(unsafe_op_in_unsafe_fn, reason = "the contract of `Kernel::run`")]

use engine_core::backend::OpKind;

use super::{Kernel, spoil_last};
use crate::memory::View;
use crate::simd::Simd;
use crate::threads::Worker;

/// All-reduce over one rank: x stays as it is.
pub(crate) struct AllReduce {
    pub x: View,
}

impl Kernel for AllReduce {
    const OP: OpKind = OpKind::AllReduce;
    fn serial(&self, _: u32) -> bool {
        true
    }
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, _: &Worker<'_>, _: u32) {}
    unsafe fn spoil(&self) {
        spoil_last(&self.x)
    }
}
