//! Products: against plain sums, batch invariance, capture, threads.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use backend_cpu::SimdPath;
use common::*;
use engine_core::DType;
use engine_core::backend::*;

fn product(x: &[f32], w: &[f32], [m, n, k]: [usize; 3]) -> Vec<f32> {
    let mut out = Vec::with_capacity(m * n);
    for x in x.chunks_exact(k).take(m) {
        for w in w.chunks_exact(k).take(n) {
            out.push(x.iter().zip(w).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32);
        }
    }
    out
}

#[test]
fn products_match_plain_sums() {
    for path in SimdPath::available() {
        for dtype in FLOATS {
            for [m, n, k] in [
                [1, 32, 64],
                [1, 100, 33],
                [2, 65, 128],
                [3, 7, 5],
                [5, 96, 70],
                [13, 40, 1100],
                [40, 130, 257],
            ] {
                let mut rig = Rig::new(path, 2);
                let x = rounded(&noise(1, m * k), dtype);
                let w = rounded(&noise(2, n * k), dtype);
                let weight = rig.weight(&w, [n, k], dtype, Uses::Linear);
                let xt = rig.floats(&x, &[m as u32, k as u32], dtype);
                let out = rig.empty(&[m as u32, n as u32], DType::F32);
                rig.op(Op::Gemm { x: xt.into(), w: &weight, e: Epilogue::default(), out: out.into() });
                let got = rig.read(out);
                let what = format!("{} {dtype} {m}x{n}x{k}", path.name());
                close(&got, &product(&x, &w, [m, n, k]), 1e-5, &what);
            }
        }
    }
}

#[test]
fn epilogues_follow_their_formula() {
    let [m, i, k] = [5usize, 40usize, 24usize];
    for path in SimdPath::available() {
        for dtype in FLOATS {
            let mut rig = Rig::new(path, 2);
            let x = rounded(&noise(1, m * k), dtype);
            let (gate, up) = (rounded(&noise(2, i * k), dtype), rounded(&noise(3, i * k), dtype));
            let parts = [(gate.as_slice(), [i, k]), (up.as_slice(), [i, k])];
            let w = rig.fused(&parts, dtype, Fuse::GateUp, Uses::Linear);
            let bias = noise(4, 2 * i);
            let biases = rig.vector(&bias);
            let residual = rounded(&noise(5, m * i), dtype);
            let add = rounded(&noise(6, m * 2 * i), dtype);
            let xt = rig.floats(&x, &[m as u32, k as u32], dtype);
            let rt = rig.floats(&residual, &[m as u32, i as u32], dtype);
            let at = rig.floats(&add, &[m as u32, 2 * i as u32], dtype);
            let e = Epilogue {
                bias: Some(&biases),
                add: Some(at),
                act: Activation::SiluMul,
                scale: Some(0.5),
                residual: Some(rt),
            };
            rig.op(Op::Gemm { x: xt.into(), w: &w, e, out: rt.into() });
            let (g, u) = (product(&x, &gate, [m, i, k]), product(&x, &up, [m, i, k]));
            let want: Vec<f32> = (0..m * i)
                .map(|j| {
                    let (row, col) = (j / i, j % i);
                    let g = g[j] + bias[col] + add[row * 2 * i + col];
                    let u = u[j] + bias[i + col] + add[row * 2 * i + i + col];
                    residual[j] + 0.5 * (g / (1.0 + (-g).exp()) * u)
                })
                .collect();
            close(&rig.read(rt), &want, tolerance(dtype).max(1e-5), path.name());
        }
    }
}

/// All rows at once, then each alone, by several thread counts: the same bits.
#[test]
fn a_row_does_not_depend_on_its_neighbours() {
    for path in SimdPath::available() {
        for dtype in FLOATS {
            for [n, k] in [[96, 200], [70, 1500], [320, 64]] {
                let w = rounded(&noise(2, n * k), dtype);
                let mut alone: Option<Vec<u8>> = None;
                for (threads, m) in [(1, 1), (2, 2), (1, 7), (3, 12), (2, 16), (2, 33), (1, 61)] {
                    let mut rig = Rig::new(path, threads);
                    let x = noise(1, 61 * k);
                    let weight = rig.weight(&w, [n, k], dtype, Uses::Linear);
                    let xt = rig.floats(&x, &[61, k as u32], dtype);
                    let out = rig.empty(&[61, n as u32], dtype);
                    for first in (0..61).step_by(m) {
                        let rows = m.min(61 - first) as u32;
                        let (x, out) = (xt.rows_at(first as u32, rows), out.rows_at(first as u32, rows));
                        rig.op(Op::Gemm { x: x.into(), w: &weight, e: Epilogue::default(), out: out.into() });
                    }
                    let got = rig.bytes(out);
                    let first = alone.get_or_insert_with(|| got.clone());
                    assert!(
                        *first == got,
                        "{} {dtype} {n}x{k}: {m} rows at once, {threads} threads",
                        path.name()
                    );
                }
            }
        }
    }
}

/// Enough rows and steps of K that every blocking of them is met, with a remainder of each.
#[test]
fn a_row_of_a_long_prompt_has_the_bits_it_has_alone() {
    let [m, n, k] = [300usize, 100usize, 2100usize];
    let w = rounded(&noise(2, n * k), DType::Bf16);
    let x = rounded(&noise(1, m * k), DType::Bf16);
    let want = product(&x, &w, [m, n, k]);
    for path in SimdPath::available() {
        let mut rig = Rig::new(path, 2);
        let weight = rig.weight(&w, [n, k], DType::Bf16, Uses::Linear);
        let xt = rig.floats(&x, &[m as u32, k as u32], DType::Bf16);
        let out = rig.empty(&[m as u32, n as u32], DType::F32);
        let e = Epilogue::default();
        rig.op(Op::Gemm { x: xt.into(), w: &weight, e, out: out.into() });
        let together = rig.read(out);
        close(&together, &want, 1e-5, path.name());
        for row in [0, 15, 16, 255, 256, 287, 299u32] {
            let (x, one) = (xt.rows_at(row, 1), out.rows_at(row, 1));
            rig.op(Op::Gemm { x: x.into(), w: &weight, e, out: one.into() });
        }
        assert!(together == rig.read(out), "{}", path.name());
    }
}

#[test]
fn tied_embeddings_are_read_from_the_panels() {
    let (v, h) = (70, 33);
    for dtype in FLOATS {
        let table = rounded(&noise(9, v * h), dtype);
        for uses in [Uses::Both, Uses::Embed] {
            let mut rig = Rig::new(SimdPath::detect(), 1);
            let w = rig.weight(&table, [v, h], dtype, uses);
            let ids = rig.ints(&[3, 69, -1, 0, 31, 32], &[6]);
            let out = rig.floats(&[7.0; 6 * 33], &[6, h as u32], dtype);
            rig.op(Op::Embed { table: &w, ids, out });
            let row = |i: usize| table[i * h..(i + 1) * h].to_vec();
            let want = [row(3), row(69), vec![0.0; h], row(0), row(31), row(32)].concat();
            assert_eq!(rig.read(out), want, "{dtype} {uses:?}");
        }
    }
}

#[test]
fn a_captured_list_gives_the_same_bits_twice() {
    let [m, n, k] = [9usize, 64usize, 96usize];
    let mut rig = Rig::new(SimdPath::detect(), 2);
    let w = rig.weight(&noise(2, n * k), [n, k], DType::Bf16, Uses::Linear);
    let norm = rig.vector(&noise(3, k));
    let x = rig.floats(&noise(1, m * k), &[m as u32, k as u32], DType::Bf16);
    let out = rig.empty(&[m as u32, n as u32], DType::F32);
    let body = |s: &mut dyn Stream| {
        let mark = s.mark();
        let normed = s.scratch(&[m as u32, k as u32], DType::Bf16);
        s.norm(x, None, &norm, 1e-5, normed.into())?;
        s.linear(normed.into(), &w, Epilogue::default(), out)?;
        s.release(mark);
        Ok(())
    };
    body(&mut *rig.stream).unwrap();
    let eager = rig.bytes(out);
    let (graph, ()) = capture(&mut *rig.stream, body).unwrap();
    let graph = graph.unwrap();
    drop((w.clone(), norm.clone()));
    for _ in 0..2 {
        rig.stream.upload(&vec![0; eager.len()], out).unwrap();
        rig.stream.replay(&graph).unwrap();
        assert_eq!(rig.bytes(out), eager);
    }
}

#[test]
#[should_panic(expected = "stale scratch")]
fn released_scratch_is_stale() {
    let mut rig = Rig::new(SimdPath::Portable, 1);
    let mark = rig.stream.mark();
    let t = rig.stream.scratch(&[4, 4], DType::F32);
    rig.stream.release(mark);
    let out = rig.empty(&[4, 4], DType::F32);
    let _ = rig.stream.op(&Op::Copy { x: t, out });
}

#[test]
fn a_panicking_kernel_loses_the_device_and_hangs_nobody() {
    let mut rig = Rig::new(SimdPath::detect(), 2);
    let w = rig.weight(&noise(1, 64), [8, 8], DType::F32, Uses::Embed);
    let ids = rig.ints(&[8], &[1]);
    let out = rig.empty(&[1, 8], DType::F32);
    rig.op(Op::Embed { table: &w, ids, out });
    let slot = rig.backend.host_slot(32).unwrap();
    let error = match rig.stream.download(out, slot) {
        Ok(pending) => rig.stream.wait(pending).err().unwrap(),
        Err(e) => e,
    };
    assert!(error.to_string().contains("token id 8 in a vocabulary of 8"), "{error}");
    assert!(rig.stream.record().is_err());
}
