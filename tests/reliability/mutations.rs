//! Every parser under seeded mutations of valid inputs: no panic, no hang, no allocation out of proportion.
//!
//! The targets are those of `tests/fuzz/`, where libFuzzer drives them. Here each gets 20,000 inputs, the same ones
//! every time; `MUTATION_CASES` asks for another number. A failure names the case and writes its input to a file.
//! `FUZZ_CORPUS` names a directory that the valid inputs are written to, for libFuzzer to start from.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../http/harness.rs"]
#[allow(dead_code, unused_imports, reason = "the tests of the wire use the rest")]
mod harness;
#[path = "mutations/mutate.rs"]
mod mutate;
#[path = "../fuzz/targets.rs"]
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tests::allocator::{Counting, peak_here, restart_peak_here};
use tests::rng::Rng;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The longest that one input may take; a template may use up its instructions, on a machine that does other things too.
const CASE_LIMIT: Duration = Duration::from_secs(20);

fn cases() -> u64 {
    std::env::var("MUTATION_CASES").ok().map_or(20_000, |n| n.parse().expect("MUTATION_CASES is a number"))
}

fn check(name: &str) {
    let target = targets::target(name);
    let seeds = (target.seeds)();
    if let Some(corpus) = std::env::var_os("FUZZ_CORPUS") {
        write_seeds(&PathBuf::from(corpus).join(name), &seeds);
    }
    let start = Instant::now();
    let mut most_bytes = 0;
    // An overflow of the stack ends the process: what it was reading is here then.
    let current = targets::directory("current").join(name);
    // The seeds themselves, then what is made of them.
    for case in 0..cases() {
        let mut rng = Rng::new(case);
        let input = match seeds.get(case as usize) {
            Some(seed) => seed.clone(),
            None => mutate::mutated(&mut rng, &seeds),
        };
        std::fs::write(&current, &input).unwrap();
        let began = Instant::now();
        restart_peak_here();
        let ended = catch_unwind(AssertUnwindSafe(|| (target.run)(&input)));
        let (took, bytes) = (began.elapsed(), peak_here());
        let allowed_bytes = target.fixed_bytes + target.bytes_per_byte * input.len() as u64;
        let fault = match ended {
            Err(_) => Some("it panics".to_owned()),
            Ok(()) if took > CASE_LIMIT => Some(format!("it takes {took:?}")),
            Ok(()) if bytes > allowed_bytes && case > 0 => {
                Some(format!("it allocates {bytes} bytes, {allowed_bytes} allowed"))
            }
            Ok(()) => None,
        };
        if let Some(fault) = fault {
            let path = std::env::temp_dir().join(format!("pallium-{name}-{case}"));
            std::fs::write(&path, &input).unwrap();
            panic!("{name}, case {case} of {} bytes, in {}: {fault}", input.len(), path.display());
        }
        most_bytes = bytes.max(most_bytes);
    }
    std::fs::remove_file(current).unwrap();
    println!("{name}: {} inputs in {:?}, at most {most_bytes} bytes", cases(), start.elapsed());
}

fn write_seeds(dir: &Path, seeds: &[Vec<u8>]) {
    std::fs::create_dir_all(dir).unwrap();
    for (i, seed) in seeds.iter().enumerate() {
        std::fs::write(dir.join(format!("seed-{i}")), seed).unwrap();
    }
}

/// Each target is a test of its own, and there is no target without one.
macro_rules! targets {
    ($($name:ident),+) => {
        $(#[test]
        fn $name() {
            check(stringify!($name));
        })+

        #[test]
        fn every_target_is_tried() {
            let tried = [$(stringify!($name)),+];
            assert_eq!(targets::TARGETS.iter().map(|target| target.name).collect::<Vec<_>>(), tried);
        }
    };
}

targets!(
    safetensors,
    torch,
    gguf,
    index,
    config,
    tokenizer_json,
    tokenizer_model,
    template,
    completions,
    chat
);

#[test]
fn gguf_seeds_are_models() {
    assert!(targets::gguf::seeds().iter().all(|seed| targets::gguf::is_whole(seed)));
}

#[test]
fn a_panic_and_a_large_allocation_are_noticed() {
    restart_peak_here();
    drop(std::hint::black_box(vec![0_u8; 3 << 20]));
    assert!(peak_here() >= 3 << 20, "{}", peak_here());
    restart_peak_here();
    assert!(peak_here() < 1 << 20, "{}", peak_here());
    let seeds = vec![b"{\"number\": 12, \"text\": \"abc\"}".to_vec()];
    let all: Vec<Vec<u8>> = (0..500).map(|case| mutate::mutated(&mut Rng::new(case), &seeds)).collect();
    let distinct: std::collections::HashSet<&Vec<u8>> = all.iter().collect();
    assert!(distinct.len() > 400, "{}", distinct.len());
    let valid = all.iter().filter(|input| serde_json::from_slice::<serde_json::Value>(input).is_ok()).count();
    assert!(valid > 50 && valid < 450, "{valid} of 500 are valid JSON: some must be, to get past the parser");
}
