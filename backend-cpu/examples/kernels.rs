//! What the kernels reach of what this machine can do: `cargo run --release -p backend-cpu --example kernels`.
//!
//! Measures the machine's limits ([`CpuBackend::measure_limits`]), then every
//! product of the 1B Llama shape at 1, 16 and 512 rows, each as a share of its own limit, then attention and
//! sampling. Limits and kernels are measured alternately and the best of several runs is taken, since other work on
//! the machine can only slow either. Arguments: `--threads N`, `--simd NAME`, `--layers N` (weights that fit a cache
//! would flatter), `--runs N`, `--rows N,N,..`, `--clock cpu` (processor time of one thread instead of elapsed time:
//! tells something about arithmetic on a busy machine, nothing about bandwidth).
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::OnceLock;
use std::time::Instant;

use backend_cpu::{CpuBackend, CpuConfig, SimdChoice, SimdPath};
use engine_core::backend::*;
use engine_core::loader::fill::Fill;
use engine_core::quant::WeightFormat;
use engine_core::quant::at_load::{LoadQuantization, quantize};
use engine_core::{DType, Tensor};

const HIDDEN: u32 = 2048;
const INNER: u32 = 8192;
const QKV: u32 = 3072;
const VOCAB: u32 = 128_256;

struct Options {
    threads: Option<usize>,
    simd: SimdChoice,
    layers: usize,
    runs: usize,
    rows: Vec<u32>,
    /// What weights are quantized to, if at all.
    quantization: Option<LoadQuantization>,
    /// The one product to run, for profiles.
    only: Option<String>,
    clock: Clock,
}

#[derive(Clone, Copy, PartialEq)]
enum Clock {
    Wall,
    Cpu,
}

/// Seconds since some fixed point; see `--clock`.
fn now() -> f64 {
    static START: OnceLock<Instant> = OnceLock::new();
    if CLOCK.get() != Some(&Clock::Cpu) {
        return START.get_or_init(Instant::now).elapsed().as_secs_f64();
    }
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is writable.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut t) };
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}

static CLOCK: OnceLock<Clock> = OnceLock::new();

fn options() -> Options {
    let mut o = Options {
        threads: None,
        simd: SimdChoice::Auto,
        layers: 16,
        runs: 5,
        rows: vec![1, 16, 512],
        quantization: None,
        only: None,
        clock: Clock::Wall,
    };
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        let value = args.next().unwrap_or_else(|| panic!("{flag} needs a value"));
        match flag.as_str() {
            "--threads" => o.threads = Some(value.parse().unwrap()),
            "--layers" => o.layers = value.parse().unwrap(),
            "--runs" => o.runs = value.parse().unwrap(),
            "--rows" => o.rows = value.split(',').map(|n| n.parse().unwrap()).collect(),
            "--quantization" => {
                o.quantization = Some(LoadQuantization::from_name(&value).expect("a quantization's name"));
            }
            "--only" => o.only = Some(value),
            "--clock" => o.clock = if value == "cpu" { Clock::Cpu } else { Clock::Wall },
            "--simd" => {
                let path = SimdPath::ALL.into_iter().find(|p| p.name() == value).expect("a path's name");
                o.simd = SimdChoice::Forced(path);
            }
            other => panic!("unknown argument {other}"),
        }
    }
    o
}

struct Layer {
    qkv: Weight,
    o: Weight,
    gate_up: Weight,
    down: Weight,
}

fn main() {
    let o = options();
    CLOCK.get_or_init(|| o.clock);
    let backend = CpuBackend::new(CpuConfig { threads: o.threads, simd: o.simd }).unwrap();
    let threads = backend.threads();
    println!("{}, {} on {threads} threads", backend.info().name, backend.info().arch);
    let loading = Instant::now();
    let layers: Vec<Layer> = (0..o.layers).map(|i| layer(&backend, o.quantization, i)).collect();
    let head = weight(&backend, o.quantization, "head", &[VOCAB], HIDDEN, Fuse::One);
    println!("{} layers filled and packed in {:.1} s", o.layers, loading.elapsed().as_secs_f64());
    let mut stream = backend.stream(QueueKind::Compute, &caps(), &[]).unwrap();
    products(&backend, &mut *stream, &layers, &head, &o);
    if o.only.is_some() {
        return;
    }
    sampling(&backend, &mut *stream, o.runs);
    attention(&backend, &mut *stream, o.runs);
}

fn caps() -> StepCaps {
    StepCaps {
        rows: 64,
        tokens: 1024,
        logit_rows: 64,
        pages_per_row: 1024,
        groups: 1,
        vocab: VOCAB,
        logprobs: 8,
        drafts: 0,
        arena_bytes: 256 << 20,
        invariance: Invariance::Batch,
    }
}

fn layer(b: &CpuBackend, to: Option<LoadQuantization>, i: usize) -> Layer {
    Layer {
        qkv: weight(b, to, &format!("{i}.qkv"), &[QKV], HIDDEN, Fuse::One),
        o: weight(b, to, &format!("{i}.o"), &[HIDDEN], HIDDEN, Fuse::One),
        gate_up: weight(b, to, &format!("{i}.gate_up"), &[INNER, INNER], HIDDEN, Fuse::GateUp),
        down: weight(b, to, &format!("{i}.down"), &[HIDDEN], INNER, Fuse::One),
    }
}

fn weight(
    b: &CpuBackend,
    to: Option<LoadQuantization>,
    name: &str,
    rows: &[u32],
    k: u32,
    fuse: Fuse,
) -> Weight {
    let part = |(i, n): (usize, &u32)| HostPart {
        name: format!("{name}.{i}"),
        data: PartData::Fill(Fill::new(1, &format!("{name}.{i}"), 0.0, 0.02)),
        format: WeightFormat::Dense(DType::Bf16),
        shape: [u64::from(*n), u64::from(k)],
        aux: Vec::new(),
    };
    let parts = rows.iter().enumerate().map(part).map(|part| match to {
        Some(to) => quantize(part, to).unwrap(),
        None => part,
    });
    let parts = parts.collect();
    let (uses, shard, act_dtype) = (Uses::Linear, Shard::Whole, DType::Bf16);
    b.load_weight(HostWeight { name: name.into(), parts, fuse, uses, shard, act_dtype }).unwrap()
}

/// Seconds that what `f` enqueues takes, best of `runs`.
fn best(b: &CpuBackend, s: &mut dyn Stream, runs: usize, mut f: impl FnMut(&mut dyn Stream)) -> f64 {
    let probe = b.buffer(&[1], DType::F32, MemKind::Device).unwrap();
    let mut least = f64::INFINITY;
    for _ in 0..runs {
        let start = now();
        f(s);
        let slot = b.host_slot(4).unwrap();
        let pending = s.download(probe.tensor(), slot).unwrap();
        s.wait(pending).unwrap();
        least = least.min(now() - start);
    }
    least
}

/// Bytes read in a second, and operations of the widest multiply of the path.
fn limits(b: &CpuBackend) -> (f64, f64) {
    let limits = b.measure_limits(1 << 30).unwrap();
    (limits.read_bytes_per_s, limits.flop_per_s)
}

fn products(b: &CpuBackend, s: &mut dyn Stream, layers: &[Layer], head: &Weight, o: &Options) {
    let (bandwidth, peak) = limits(b);
    println!("read {:.1} GB/s; multiply {:.0} GFLOP/s", bandwidth / 1e9, peak / 1e9);
    for rows in o.rows.iter().copied() {
        let x = b.buffer(&[rows, INNER], DType::Bf16, MemKind::Device).unwrap();
        let out = b.buffer(&[rows, INNER], DType::Bf16, MemKind::Device).unwrap();
        let logit_rows = rows.min(16);
        let logits = b.buffer(&[logit_rows, VOCAB], DType::F32, MemKind::Device).unwrap();
        s.upload(&noise(rows as usize * INNER as usize), x.tensor()).unwrap();
        let x_of = |k: u32| x.tensor().view(&[rows * INNER / k, k]).rows_at(0, rows);
        let narrow = |n: u32| out.tensor().cols_at(0, n);
        let silu = Epilogue { act: Activation::SiluMul, ..Epilogue::default() };
        type Run<'a> = Box<dyn Fn(&mut dyn Stream) + 'a>;
        let bytes_of = |pick: fn(&Layer) -> &Weight| layers.iter().map(|l| pick(l).meta().bytes).sum::<u64>();
        let each = |pick: fn(&Layer) -> &Weight, k: u32, n: u32, halves: bool| -> Run<'_> {
            let (x, out) = (x_of(k), narrow(n));
            let e = if halves { silu } else { Epilogue::default() };
            Box::new(move |s| layers.iter().for_each(|l| s.linear(x.into(), pick(l), e, out).unwrap()))
        };
        let head_x = x_of(HIDDEN).rows_at(0, logit_rows);
        let logits = logits.tensor();
        let size = |n: u32, k: u32| layers.len() as u64 * u64::from(n) * u64::from(k);
        let cases: Vec<(&str, u64, u64, Run<'_>)> = vec![
            ("qkv", size(QKV, HIDDEN), bytes_of(|l| &l.qkv), each(|l| &l.qkv, HIDDEN, QKV, false)),
            ("o", size(HIDDEN, HIDDEN), bytes_of(|l| &l.o), each(|l| &l.o, HIDDEN, HIDDEN, false)),
            (
                "gate_up",
                size(2 * INNER, HIDDEN),
                bytes_of(|l| &l.gate_up),
                each(|l| &l.gate_up, HIDDEN, INNER, true),
            ),
            ("down", size(HIDDEN, INNER), bytes_of(|l| &l.down), each(|l| &l.down, INNER, HIDDEN, false)),
            (
                "head",
                u64::from(VOCAB) * u64::from(HIDDEN),
                head.meta().bytes,
                Box::new(move |s| {
                    s.linear(head_x.into(), head, Epilogue::default(), logits).unwrap();
                }),
            ),
        ];
        let (mut total, mut limit) = (0.0, 0.0);
        let wanted = |name: &str| o.only.as_ref().is_none_or(|only| only == name);
        for (name, elements, bytes, run) in cases.iter().filter(|case| wanted(case.0)) {
            let rows = if *name == "head" { logit_rows } else { rows };
            let seconds = best(b, s, o.runs, run);
            let (weights, bytes) = (*elements as f64, *bytes as f64);
            let floor = (bytes / bandwidth).max(weights * 2.0 * f64::from(rows) / peak);
            let (gb, gflop) = (bytes / 1e9, weights * 2.0 * f64::from(rows) / 1e9);
            println!(
                "{rows:4} rows {name:8} {:9.3} ms {:7.1} GB/s {:7.1} GFLOP/s {:4.0} %",
                seconds * 1e3,
                gb / seconds,
                gflop / seconds,
                100.0 * floor / seconds
            );
            total += seconds;
            limit += floor;
        }
        println!(
            "{rows:4} rows all      {:9.3} ms, {:.0} % of its limit",
            total * 1e3,
            100.0 * limit / total
        );
    }
    let (after, peak_after) = limits(b);
    println!("afterwards: read {:.1} GB/s; multiply {:.0} GFLOP/s", after / 1e9, peak_after / 1e9);
}

fn noise(n: usize) -> Vec<u8> {
    let fill = Fill::new(3, "x", 0.0, 1.0);
    let mut bytes = vec![0u8; n * 2];
    fill.write(0, DType::Bf16, &mut bytes);
    bytes
}

fn sampling(b: &CpuBackend, s: &mut dyn Stream, runs: usize) {
    let caps = caps();
    let sampler = b.sampler(&caps).unwrap();
    let logits = b.buffer(&[1, VOCAB], DType::F32, MemKind::Device).unwrap();
    let mut bytes = vec![0u8; VOCAB as usize * 4];
    Fill::new(4, "logits", 0.0, 2.0).write(0, DType::F32, &mut bytes);
    s.upload(&bytes, logits.tensor()).unwrap();
    let ids = b.buffer(&[1], DType::I32, MemKind::Device).unwrap();
    let last = b.buffer(&[caps.rows], DType::I32, MemKind::Device).unwrap();
    let rows = b.buffer(&[1, SampleRow::WORDS as u32], DType::U32, MemKind::Device).unwrap();
    let draw = SampleRow { slot: 0, flags: 0, temperature: 1.0, seed: 7, position: 1, ..SampleRow::PADDING };
    let kinds = [
        ("greedy", SampleRow { flags: SampleRow::GREEDY, ..draw }),
        ("draw", draw),
        ("top_k 50", SampleRow { top_k: 50, ..draw }),
        ("top_p 0.9", SampleRow { top_p: 0.9, ..draw }),
        ("top_k 50, top_p 0.9", SampleRow { top_k: 50, top_p: 0.9, ..draw }),
        ("penalties", SampleRow { flags: SampleRow::PENALTIES, frequency: 0.5, ..draw }),
    ];
    for (name, row) in kinds {
        let mut words = [0u32; SampleRow::WORDS];
        row.write(&mut words);
        let packed: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        s.upload(&packed, rows.tensor()).unwrap();
        let op = Sample {
            logits: logits.tensor(),
            sampler: &sampler,
            rows: rows.tensor(),
            draft: None,
            mask: None,
            ids: ids.tensor(),
            last: last.tensor(),
            accepted: None,
            logprobs: None,
        };
        let seconds = best(b, s, runs * 4, |s| (0..32).for_each(|_| s.op(&Op::Sample(op)).unwrap())) / 32.0;
        println!("sample {name:20} {:7.1} us a row of {VOCAB}", seconds * 1e6);
    }
}

/// Decode attention over one long sequence and prefill over 512 tokens, in the 1B shape.
fn attention(b: &CpuBackend, s: &mut dyn Stream, runs: usize) {
    let page_tokens = 16;
    for (name, q_len, kv_len) in [("decode", 1u32, 8192u32), ("prefill", 512, 512), ("chunk", 512, 4096)] {
        let pages = kv_len.div_ceil(page_tokens) + 1;
        let group = KvGroupSpec {
            kind: KvKind::Full,
            layers: 1,
            kv_heads: 8,
            k_dim: 64,
            v_dim: 64,
            dtype: DType::Bf16,
            page_tokens,
        };
        let pool = b.kv_pool(&[group], pages).unwrap();
        let spec = AttnSpec {
            group: 0,
            q_heads: 32,
            kv_heads: 8,
            k_dim: 64,
            v_dim: 64,
            mask: Mask::Causal,
            q_dtype: DType::Bf16,
            kv_dtype: DType::Bf16,
            page_tokens,
        };
        let plan = b.attn_plan(&spec, &caps()).unwrap();
        let q = b.buffer(&[q_len, 2048], DType::Bf16, MemKind::Device).unwrap();
        s.upload(&noise(q_len as usize * 2048), q.tensor()).unwrap();
        let out = b.buffer(&[q_len, 2048], DType::Bf16, MemKind::Device).unwrap();
        let int = |s: &mut dyn Stream, values: &[i32], shape: &[u32]| -> Buffer {
            let buffer = b.buffer(shape, DType::I32, MemKind::Device).unwrap();
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            s.upload(&bytes, buffer.tensor()).unwrap();
            buffer
        };
        let rows = int(s, &[0], &[1]);
        let kv = int(s, &[kv_len as i32], &[1]);
        let cu_q = int(s, &[0, q_len as i32], &[2]);
        let table: Vec<i32> = (1..pages as i32).collect();
        let tables = int(s, &table, &[1, 1, pages - 1]);
        fill_cache(b, s, &pool, kv_len);
        s.op(&Op::PlanOnDevice {
            plan: &plan,
            rows: rows.tensor(),
            kv_len: kv.tensor(),
            cu_q: cu_q.tensor(),
            tables: tables.tensor().view(&[1, 1, pages - 1]),
        })
        .unwrap();
        let op = Op::PagedAttention {
            q: q.tensor().heads(32, 64),
            kv: Kv::Paged(&pool.groups[0][0]),
            plan: &plan,
            args: AttnArgs { scale: 0.125, ..AttnArgs::default() },
            out: out.tensor().into(),
        };
        let seconds = best(b, s, runs, |s| s.op(&op).unwrap());
        let seen = (0..q_len).map(|i| f64::from(kv_len - q_len + i + 1)).sum::<f64>();
        let gflop = seen * 32.0 * 64.0 * 4.0 / 1e9;
        let gb = f64::from(kv_len) * 8.0 * 128.0 * 2.0 / 1e9;
        println!(
            "attention {name} {q_len} of {kv_len}: {:.3} ms, {:.1} GFLOP/s, cache {:.1} GB/s",
            seconds * 1e3,
            gflop / seconds,
            gb / seconds
        );
    }
}

fn fill_cache(b: &CpuBackend, s: &mut dyn Stream, pool: &KvPool, kv_len: u32) {
    let kv = b.buffer(&[kv_len, 512], DType::Bf16, MemKind::Device).unwrap();
    s.upload(&noise(kv_len as usize * 512), kv.tensor()).unwrap();
    let slots = b.buffer(&[kv_len], DType::I32, MemKind::Device).unwrap();
    let bytes: Vec<u8> = (16..kv_len as i32 + 16).flat_map(|v| v.to_le_bytes()).collect();
    s.upload(&bytes, slots.tensor()).unwrap();
    let heads: Tensor = kv.tensor().heads(8, 64);
    s.op(&Op::RopeKvWrite {
        q: heads,
        k: heads,
        v: heads,
        rope: None,
        slots: slots.tensor(),
        kv: &pool.groups[0][0],
    })
    .unwrap();
    let ticket = s.record().unwrap();
    while s.control().completed() < ticket.at {
        std::thread::yield_now();
    }
}
