//! `cargo test -p tests --features faults --test faults`: each planted fault of the CPU backend must turn the
//! conformance run of its op red, and the run must be green without. `FAULT_OPS=AllReduce,Norm` looks at these only.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use backend_cpu::faults::{plant, ways};
use backend_cpu::{CpuBackend, CpuConfig, SimdChoice, SimdPath};
use engine_core::backend::{Backend, OpKind, OpSpec, Support};
use std::sync::Arc;
use tests::conformance::{Case, Device, Verdict, cases, check};

/// A fault for each way of each of these ops on each SIMD path: the last element of the kernel's result is wrong.
const FAULTY_OPS: &[OpKind] = &[
    OpKind::Embed,
    OpKind::GatherRows,
    OpKind::ScatterRows,
    OpKind::Copy,
    OpKind::CopyPages,
    OpKind::UpdateTables,
    OpKind::NextInputs,
    OpKind::PlanOnDevice,
    OpKind::Gemm,
    OpKind::QuantizedMatmul,
    OpKind::Norm,
    OpKind::LayerNorm,
    OpKind::Elementwise,
    OpKind::RopeKvWrite,
    OpKind::PagedAttention,
    OpKind::UpdateSampler,
    OpKind::Sample,
    OpKind::LogProbs,
    OpKind::AllReduce,
    OpKind::AllGather,
    OpKind::ReduceScatter,
];

/// Whether `FAULT_OPS`, where it is set, names the op.
fn is_wanted(op: OpKind) -> bool {
    std::env::var("FAULT_OPS").map_or(true, |names| names.split(',').any(|name| name == op.name()))
}

/// The fault hook is one per process, so this is one test.
#[test]
fn every_planted_fault_is_found() {
    let mut missed = Vec::new();
    for path in SimdPath::ALL {
        let config = CpuConfig { threads: Some(2), simd: SimdChoice::Forced(path) };
        if !SimdPath::available().contains(&path) {
            println!("left out: this host has no {}", path.name());
            continue;
        }
        let backend: Arc<dyn Backend> = Arc::new(CpuBackend::new(config).expect("an available path"));
        let device = Device::new(format!("cpu/{}", path.name()), "cpu", backend);
        for op in FAULTY_OPS.iter().filter(|op| is_wanted(**op)) {
            let cases = cases(*op);
            plant(None);
            assert_eq!(
                first_wrong(&device, &cases),
                None,
                "{} {}: not green without a fault",
                op.name(),
                device.name
            );
            for (way, name) in ways(*op, path).iter().enumerate() {
                plant(Some((*op, path, way)));
                match first_wrong(&device, &cases) {
                    Some(how) => println!("{} {} {name}: found: {how}", op.name(), device.name),
                    None => missed.push(format!("{} {} {name}", op.name(), device.name)),
                }
            }
        }
        plant(None);
    }
    assert!(missed.is_empty(), "faults that no case notices: {missed:?}");
}

/// An op that the CPU runs itself and that has cases is on the list.
#[test]
fn the_list_is_whole() {
    let cpu = CpuBackend::new(CpuConfig { threads: Some(1), simd: SimdChoice::Auto })
        .expect("this host's best path");
    for op in OpKind::ALL {
        let native = matches!(cpu.supports(&OpSpec::of(*op)), Support::Native { .. });
        assert_eq!(FAULTY_OPS.contains(op), native && !cases(*op).is_empty(), "{}", op.name());
    }
}

fn first_wrong(device: &Device, cases: &[Case]) -> Option<String> {
    cases.iter().find_map(|case| {
        let report = check(device, std::slice::from_ref(case));
        match &report.verdicts[0] {
            (name, Verdict::Wrong(how)) => Some(format!("{name}: {how}")),
            _ => None,
        }
    })
}
