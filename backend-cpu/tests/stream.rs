//! Queues: order between streams, pages to the host and back, abort, idle cost, no allocation in steady state.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use backend_cpu::{CpuBackend, CpuConfig, SimdChoice, SimdPath};
use common::*;
use engine_core::backend::*;
use engine_core::{DType, Error};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
/// Tests of this file run one at a time: the counter is the process's.
static ALONE: Mutex<()> = Mutex::new(());

// SAFETY: forwards to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A small decoder step: everything a plain step does, as one list.
#[test]
fn steady_state_allocates_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let mut rig = Rig::new(SimdPath::detect(), 2);
    let (rows, h) = (4u32, 64u32);
    let w = rig.weight(&noise(1, 64 * 64), [64, 64], DType::F32, Uses::Both);
    let head = rig.weight(&noise(2, 1000 * 64), [1000, 64], DType::F32, Uses::Linear);
    let norm = rig.vector(&noise(3, 64));
    let sampler = rig.backend.sampler(&caps()).unwrap();
    let (spec, group) = small_attention();
    let pool = rig.backend.kv_pool(&[group], 16).unwrap();
    let plan = rig.backend.attn_plan(&spec, &caps()).unwrap();
    let ids = rig.ints(&[1, 2, 3, 4], &[4]);
    let slots = rig.ints(&[16, 32, 48, 64], &[4]);
    let (slot_rows, kv_len) = (rig.ints(&[0, 1, 2, 3], &[4]), rig.ints(&[1, 1, 1, 1], &[4]));
    let cu_q = rig.ints(&[0, 1, 2, 3, 4], &[5]);
    let tables = rig.ints(&[1, 2, 3, 4], &[1, 4, 1]);
    let out_ids = rig.empty(&[4], DType::I32);
    let last = rig.empty(&[16], DType::I32);
    let packed = rig.empty(&[4, 16], DType::U32);
    let body = |s: &mut dyn Stream| {
        let mark = s.mark();
        let x = s.scratch(&[rows, h], DType::F32);
        let y = s.scratch(&[rows, h], DType::F32);
        let logits = s.scratch(&[rows, 1000], DType::F32);
        s.op(&Op::Embed { table: &w, ids, out: x })?;
        s.norm(x, None, &norm, 1e-5, y.into())?;
        s.linear(y.into(), &w, Epilogue::default(), x)?;
        let (q, kv) = (x.heads(4, 16), x.cols_at(0, 32).heads(2, 16));
        let kv_layer = &pool.groups[0][0];
        s.op(&Op::PlanOnDevice { plan: &plan, rows: slot_rows, kv_len, cu_q, tables })?;
        s.op(&Op::RopeKvWrite { q, k: kv, v: kv, rope: None, slots, kv: kv_layer })?;
        let args = AttnArgs { scale: 0.25, ..AttnArgs::default() };
        s.op(&Op::PagedAttention { q, kv: Kv::Paged(kv_layer), plan: &plan, args, out: y.into() })?;
        s.linear(y.into(), &head, Epilogue::default(), logits)?;
        s.op(&Op::Sample(Sample {
            logits,
            sampler: &sampler,
            rows: packed,
            draft: None,
            mask: None,
            ids: out_ids,
            last,
            accepted: None,
            logprobs: None,
        }))?;
        s.release(mark);
        Ok(())
    };
    let (graph, ()) = capture(&mut *rig.stream, body).unwrap();
    let graph = graph.unwrap();
    let row = |slot: i32| SampleRow { slot, flags: 0, temperature: 1.0, top_p: 0.9, ..SampleRow::PADDING };
    let mut words = [0u32; 64];
    (0..4).for_each(|i| row(i as i32).write(&mut words[i * 16..(i + 1) * 16]));
    let upload: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    let mut slot = Some(rig.backend.host_slot(16).unwrap());
    let step = |rig: &mut Rig, slot: &mut Option<HostSlot>| {
        rig.stream.upload(&upload, packed).unwrap();
        rig.stream.replay(&graph).unwrap();
        body(&mut *rig.stream).unwrap();
        let pending = rig.stream.download(out_ids, slot.take().unwrap()).unwrap();
        *slot = Some(rig.stream.wait(pending).unwrap());
    };
    (0..8).for_each(|_| step(&mut rig, &mut slot));
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    (0..200).for_each(|_| step(&mut rig, &mut slot));
    assert_eq!(ALLOCATIONS.load(Ordering::SeqCst) - before, 0, "allocations in 200 steps");
}

fn small_attention() -> (AttnSpec, KvGroupSpec) {
    let spec = AttnSpec {
        group: 0,
        q_heads: 4,
        kv_heads: 2,
        k_dim: 16,
        v_dim: 16,
        mask: Mask::Causal,
        q_dtype: DType::F32,
        kv_dtype: DType::F32,
        page_tokens: 16,
    };
    let group = KvGroupSpec {
        kind: KvKind::Full,
        layers: 1,
        kv_heads: 2,
        k_dim: 16,
        v_dim: 16,
        dtype: DType::F32,
        page_tokens: 16,
    };
    (spec, group)
}

#[test]
fn a_transfer_queue_waits_for_the_compute_queue() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let mut rig = Rig::new(SimdPath::detect(), 2);
    let mut transfer = rig.backend.stream(QueueKind::Transfer, &caps(), &[]).unwrap();
    let (n, k) = (512usize, 512usize);
    let w = rig.weight(&noise(1, n * k), [n, k], DType::F32, Uses::Linear);
    let x = rig.floats(&noise(2, 256 * k), &[256, k as u32], DType::F32);
    let out = rig.empty(&[256, n as u32], DType::F32);
    let mut want = Vec::new();
    for round in 0..8 {
        for _ in 0..4 {
            rig.op(Op::Gemm { x: x.into(), w: &w, e: Epilogue::default(), out: out.into() });
        }
        let ticket = rig.stream.record().unwrap();
        transfer.after(ticket).unwrap();
        let slot = rig.backend.host_slot(out.extent_bytes() as usize).unwrap();
        let pending = transfer.download(out, slot).unwrap();
        let got = transfer.wait(pending).unwrap().bytes().to_vec();
        if round == 0 {
            want = rig.bytes(out);
        }
        assert_eq!(got, want);
        let back = transfer.record().unwrap();
        rig.stream.after(back).unwrap();
        rig.op(Op::Elementwise { op: EwOp::Scale(0.0), a: out, b: None, out });
    }
}

#[test]
fn pages_go_to_the_host_and_back() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let mut rig = Rig::new(SimdPath::detect(), 2);
    let group = KvGroupSpec {
        kind: KvKind::Full,
        layers: 2,
        kv_heads: 2,
        k_dim: 16,
        v_dim: 16,
        dtype: DType::Bf16,
        page_tokens: 16,
    };
    let pool = rig.backend.kv_pool(&[group], 5).unwrap();
    let layers = pool.groups[0].clone();
    let kv = rig.floats(&noise(4, 32 * 32), &[32, 32], DType::Bf16);
    let slots: Vec<i32> = (16..48).collect();
    let slots = rig.ints(&slots, &[32]);
    for layer in &layers {
        let heads = kv.heads(2, 16);
        rig.op(Op::RopeKvWrite { q: heads, k: heads, v: heads, rope: None, slots, kv: layer });
    }
    let bytes = 2 * pool.page_bytes as usize;
    let out = |rig: &mut Rig, pages: &[u32]| {
        let slot = rig.backend.host_slot(bytes).unwrap();
        let pending = rig.stream.pages_out(&layers, pages, slot).unwrap();
        rig.stream.wait(pending).unwrap()
    };
    let saved = out(&mut rig, &[1, 2]);
    let want = saved.bytes().to_vec();
    assert!(want.iter().any(|b| *b != 0));
    let pending = rig.stream.pages_in(&layers, &[4, 3], saved).unwrap();
    rig.stream.wait(pending).unwrap();
    assert_eq!(out(&mut rig, &[4, 3]).bytes(), want);
    let pairs = rig.ints(&[4, 1, -1, 3, 3, 2], &[3, 2]);
    rig.op(Op::CopyPages { kv: &layers, pairs });
    assert_eq!(out(&mut rig, &[1, 2]).bytes(), want);
}

#[test]
fn an_abort_fails_waits_and_later_work() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let mut rig = Rig::new(SimdPath::detect(), 2);
    let other = rig.backend.stream(QueueKind::Transfer, &caps(), &[]).unwrap();
    // A ticket that never comes: only the abort ends the wait.
    rig.stream.after(Ticket { stream: 1, at: 1 }).unwrap();
    let t = rig.empty(&[4], DType::F32);
    let slot = rig.backend.host_slot(16).unwrap();
    let pending = rig.stream.download(t, slot).unwrap();
    let control = rig.stream.control();
    let aborter = std::thread::spawn(move || control.abort("peer 1 is gone"));
    let error = rig.stream.wait(pending).err().unwrap();
    aborter.join().unwrap();
    assert!(matches!(&error, Error::DeviceLost { reason, .. } if reason == "peer 1 is gone"), "{error}");
    assert!(rig.stream.record().is_err());
    drop(other);
}

#[test]
fn idle_workers_use_no_processor_time() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let mut rig = Rig::new(SimdPath::detect(), 2);
    let t = rig.floats(&[1.0; 4], &[4], DType::F32);
    rig.bytes(t);
    let used = || {
        let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `t` is writable.
        unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut t) };
        t.tv_sec as f64 * 1e3 + t.tv_nsec as f64 * 1e-6
    };
    // Waits for a lost cause with a bound instead of sleeping: a channel that nobody writes to.
    let idle = |ms: u64| {
        let (_keep, never) = std::sync::mpsc::channel::<()>();
        let _ = never.recv_timeout(std::time::Duration::from_millis(ms));
    };
    idle(20);
    let before = used();
    idle(500);
    assert!(used() - before < 5.0, "{} ms of processor time in 500 ms", used() - before);
}

#[test]
fn wrong_configurations_say_what_would_be_right() {
    let new = |threads, simd| CpuBackend::new(CpuConfig { threads, simd }).err().map(|e| e.to_string());
    let error = new(Some(0), SimdChoice::Auto).unwrap();
    assert!(error.contains("0 threads") && error.contains("1 to"), "{error}");
    let missing = SimdPath::ALL.into_iter().find(|p| !p.is_available());
    if let Some(missing) = missing {
        let error = new(None, SimdChoice::Forced(missing)).unwrap();
        assert!(error.contains(missing.name()) && error.contains("portable"), "{error}");
    }
}
