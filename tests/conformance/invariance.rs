//! A device against itself, bit for bit: a row alone and among others, paged and contiguous, in one chunk and in two.
//! On devices that promise `Invariance::Batch`, which every rig asks for.

use engine_core::backend::{Activation, Phase};
use engine_core::{DType, Error, Result};

use super::attention::{AttnCase, Paging, Seq};
use super::dense::{Follow, GemmCase};
use super::quantized::{Numbers, QuantizedCase, formats};
use super::rig::{Mode, Output, VOCAB};
use super::sampling::{Draws, mixed_draws};
use super::{Device, FLOATS, Rig};

/// Outputs of one run; `None` where the device says no.
fn outputs(device: &Device, run: impl FnOnce(&mut Rig) -> Result<()>) -> Option<Vec<Output>> {
    let mut rig = Rig::new(device.backend.clone(), Mode::Eager).unwrap();
    match run(&mut rig) {
        Ok(()) => Some(rig.into_outputs().0),
        Err(Error::Unsupported(why)) => {
            println!("{}: left out: {why}", device.name);
            None
        }
        Err(e) => panic!("{}: {e}", device.name),
    }
}

/// Rows `range` of an output of `rows` rows equal those of another run, bit for bit.
fn same_rows(device: &Device, what: &str, alone: &Output, all: &Output, first_value: usize) {
    let among = &all.values[first_value..first_value + alone.values.len()];
    let bits = |v: &[f64]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&alone.values), bits(among), "{}: {what}, {}", device.name, alone.name);
}

/// Products of 1, 2, 5 and 8 rows against the same rows of 33.
pub fn gemm_rows(device: &Device) {
    for dtype in FLOATS {
        for act in [Activation::Identity, Activation::SiluMul] {
            let follow = Follow { act, bias: true, ..Follow::default() };
            let size = [33, 130, 257];
            let case = GemmCase { size, dtypes: [dtype; 3], follow, strided: false };
            let Some(all) = outputs(device, |rig| case.run(rig, 0..33)) else { continue };
            let width = all[0].values.len() / 33;
            for rows in [0..1, 7..8, 32..33, 3..5, 10..15, 16..24] {
                let Some(alone) = outputs(device, |rig| case.run(rig, rows.clone())) else { continue };
                let what = format!("Gemm {dtype} {act:?} rows {rows:?}");
                same_rows(device, &what, &alone[0], &all[0], rows.start * width);
            }
        }
    }
}

/// The same in every weight format.
pub fn quantized_rows(device: &Device) {
    for format in formats() {
        let follow = Follow { act: Activation::SiluMul, ..Follow::default() };
        let (size, dtype, numbers) = ([33, 80, 512], DType::Bf16, Numbers::Normal);
        let case = QuantizedCase { format, second: None, size, dtype, numbers, follow };
        let Some(all) = outputs(device, |rig| case.run(rig, 0..33)) else { continue };
        let width = all[0].values.len() / 33;
        for rows in [0..1, 7..8, 32..33, 3..5, 10..15, 16..32] {
            let Some(alone) = outputs(device, |rig| case.run(rig, rows.clone())) else { continue };
            same_rows(device, &format!("{format} rows {rows:?}"), &alone[0], &all[0], rows.start * width);
        }
    }
}

/// Every sequence of the mixed batch against itself in a batch of one.
pub fn attention_rows(device: &Device) {
    for dtype in FLOATS {
        let case = AttnCase { seqs: long_batch(), ..AttnCase::mixed(dtype) };
        let Some(all) = outputs(device, |rig| case.run(rig)) else { continue };
        let mut token = 0;
        for seq in &case.seqs {
            let one = AttnCase { seqs: vec![*seq], ..case.clone() };
            let Some(alone) = outputs(device, |rig| one.run(rig)) else { continue };
            for (alone, all) in alone.iter().zip(&all) {
                let width = all.values.len() / case.tokens() as usize;
                same_rows(device, &format!("attention {dtype} {seq:?}"), alone, all, token * width);
            }
            token += seq.q_len as usize;
        }
    }
}

fn long_batch() -> Vec<Seq> {
    let mut seqs = AttnCase::mixed(DType::F32).seqs;
    seqs[0].kv_len = 250;
    seqs
}

/// Rows of every sampling rule against themselves alone.
pub fn sample_rows(device: &Device) {
    let make = || mixed_draws(VOCAB as usize);
    let Some(all) = outputs(device, |rig| make().run(rig)) else { return };
    for i in 0..make().rows.len() {
        let one = |draws: Draws| {
            let logits = draws.logits[i * draws.vocab..][..draws.vocab].to_vec();
            Draws { rows: vec![draws.rows[i]], logits, ..draws }
        };
        let Some(alone) = outputs(device, |rig| one(make()).run(rig)) else { return };
        for (alone, all) in alone.iter().zip(&all).filter(|(a, _)| a.name != "last") {
            same_rows(device, &format!("sample row {i}"), alone, all, i * alone.values.len());
        }
    }
}

/// The same cache in consecutive pages and all over the pool.
pub fn paging(device: &Device) {
    for dtype in FLOATS {
        let run = |paging| {
            let case = AttnCase { paging, ..AttnCase::mixed(dtype) };
            outputs(device, |rig| case.run(rig))
        };
        let (Some(shuffled), Some(contiguous)) = (run(Paging::Shuffled), run(Paging::Contiguous)) else {
            continue;
        };
        for (a, b) in shuffled.iter().zip(&contiguous) {
            same_rows(device, &format!("paging {dtype}"), a, b, 0);
        }
    }
}

/// The last token of a prompt as a chunk of its own, as the last of two tokens, and as the last of the whole prompt.
pub fn chunks(device: &Device) {
    for dtype in FLOATS {
        for kv_len in [17, 64, 130] {
            let run = |q_len| {
                let seqs = vec![Seq { id: 9, kv_len, q_len, phase: Phase::Prompt }];
                let case = AttnCase { seqs, ..AttnCase::mixed(dtype) };
                outputs(device, |rig| case.run(rig))
            };
            let Some(whole) = run(kv_len) else { continue };
            for q_len in [1, 2, 7] {
                let Some(part) = run(q_len) else { continue };
                for (part, whole) in part.iter().zip(&whole) {
                    let what = format!("chunk of {q_len} of {kv_len}, {dtype}");
                    same_rows(device, &what, part, whole, whole.values.len() - part.values.len());
                }
            }
        }
    }
}
