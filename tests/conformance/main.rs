//! `cargo test -p tests --test conformance`: every op on every device of this build and host; see `mod.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use engine_core::backend::{Invariance, OpKind};
use tests::conformance::{
    Device, devices, fallback, invariance, layers, quantized, queues, run_all, support,
};

macro_rules! ops {
    ($($name:ident: $kind:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            run_all(OpKind::$kind);
        })*

        /// An op that gets cases gets a test.
        #[test]
        fn no_cases_are_left_out() {
            let tested = [$(OpKind::$kind),*];
            for op in OpKind::ALL {
                assert_eq!(tested.contains(op), !tests::conformance::cases(*op).is_empty(), "{}", op.name());
            }
        }
    };
}

ops! {
    embed: Embed,
    gather_rows: GatherRows,
    scatter_rows: ScatterRows,
    copy: Copy,
    copy_pages: CopyPages,
    update_tables: UpdateTables,
    next_inputs: NextInputs,
    plan_on_device: PlanOnDevice,
    gemm: Gemm,
    quantized_matmul: QuantizedMatmul,
    norm: Norm,
    layer_norm: LayerNorm,
    elementwise: Elementwise,
    norm_linear: NormLinear,
    rope_kv_write: RopeKvWrite,
    paged_attention: PagedAttention,
    merge_states: MergeStates,
    attend_new: AttendNew,
    top_k: TopK,
    update_sampler: UpdateSampler,
    sample: Sample,
    log_probs: LogProbs,
    all_reduce: AllReduce,
    all_gather: AllGather,
    reduce_scatter: ReduceScatter,
    all_reduce_norm: AllReduceNorm,
}

#[test]
fn a_row_alone_equals_it_among_others() {
    invariant().iter().for_each(invariance::gemm_rows);
    invariant().iter().for_each(invariance::quantized_rows);
    invariant().iter().for_each(invariance::attention_rows);
    invariant().iter().for_each(invariance::sample_rows);
}

#[test]
fn quantized_products_of_rows_that_int8_holds() {
    devices().iter().for_each(quantized::rows_that_int8_holds);
}

#[test]
fn paged_equals_contiguous() {
    devices().iter().for_each(invariance::paging);
}

#[test]
fn a_last_token_alone_equals_it_in_a_whole_prompt() {
    invariant().iter().for_each(invariance::chunks);
}

#[test]
fn captured_layers_equal_their_ops() {
    devices().iter().for_each(layers::captured_equals_eager);
}

#[test]
fn pages_leave_for_the_host_and_return() {
    devices().iter().for_each(queues::pages_leave_and_return);
}

#[test]
fn a_group_of_more_ranks_is_refused_when_a_stream_joins_it() {
    devices().iter().for_each(queues::more_ranks_are_refused);
}

#[test]
fn another_thread_sees_progress_and_aborts() {
    devices().iter().for_each(queues::control_sees_and_aborts);
}

/// Devices and code paths that promise it.
fn invariant() -> Vec<Device> {
    devices().into_iter().filter(|d| d.invariance == Invariance::Batch).collect()
}

/// The draw of the case "largest noise" is what it says, or the case would test nothing.
#[test]
fn the_largest_noise_is_that() {
    tests::conformance::sampling::check_largest();
}

/// Every op of the CPU taken away in turn: the reference stands in, and the cases still hold.
#[test]
fn host_fallback_stands_in_for_any_op() {
    use backend_cpu::{CpuBackend, CpuConfig, SimdChoice};
    let config = CpuConfig { threads: Some(1), simd: SimdChoice::Auto };
    let cpu = std::sync::Arc::new(CpuBackend::new(config).unwrap());
    // The two that the CPU lacks anyway, one of each way of living on the host, and some plain ones.
    for op in [
        OpKind::TopK,
        OpKind::MergeStates,
        OpKind::Gemm,
        OpKind::Norm,
        OpKind::NextInputs,
        OpKind::UpdateTables,
    ] {
        fallback::without(cpu.clone(), op);
    }
    for op in
        [OpKind::RopeKvWrite, OpKind::PagedAttention, OpKind::CopyPages, OpKind::Sample, OpKind::LogProbs]
    {
        fallback::without(cpu.clone(), op);
    }
}

/// docs/support.md says what ran here. After a change: `cargo run -p tests --bin support-matrix -- --write`.
#[test]
fn support_matrix_is_up_to_date() {
    if let Err(difference) = support::verify() {
        panic!("{difference}\nrun: cargo run -p tests --bin support-matrix -- --write");
    }
}
