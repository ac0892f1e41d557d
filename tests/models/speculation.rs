//! Answers with drafts are answers without: goldens in every way, sampled tokens with every rule, and, apart from all
//! of that, the distribution.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;

use engine_core::DType;
use engine_core::config::ModelConfig;
use engine_core::engine::EngineOptions;
use engine_core::engine::types::DraftCounts;
use engine_core::loader::source::{DummySource, WeightSource};
use engine_core::sampling::SamplingParams;
use engine_core::speculate::{DraftModel, Method, Speculation};
use tests::devices::cpu;
use tests::engine::{Collected, TestEngine};
use tests::golden::Golden;
use tests::models::{Family, Stories, families};

fn lookup(tokens: u32, min: u32, max: u32) -> Speculation {
    Speculation { tokens, most_rows: None, method: Method::Ngram { min, max } }
}

fn drafted_by(config: &ModelConfig, source: impl WeightSource + 'static, tokens: u32) -> Speculation {
    let source = Arc::new(source);
    let model = DraftModel { name: "draft".to_owned(), config: config.clone(), source, max_len: None };
    Speculation { tokens, most_rows: None, method: Method::Model(Box::new(model)) }
}

fn all_right(what: &str, d: &DraftCounts) {
    assert!(d.tokens > 0 && d.accepted == d.tokens, "{what}: a model agrees with itself: {d:?}");
}

fn some_wrong(what: &str, d: &DraftCounts) {
    assert!(d.tokens > 0 && d.accepted < d.tokens, "{what}: another model is not always right: {d:?}");
}

#[test]
fn every_family_answers_the_same_with_drafts() {
    for f in families() {
        let (config, source) = (f.config(), f.weights(f.seed));
        let golden = Golden { name: &f.name, config: &config, source: &source, cases: &f.cases };
        let check = |s: &Speculation| golden.check_every_way_with(&cpu, Some(s));
        assert!(check(&lookup(3, 1, 3)).tokens > 0, "{}: nothing was looked up", f.name);
        let itself = check(&drafted_by(&config, f.weights(f.seed), 4));
        match config.layer_windows.iter().any(Option::is_some) {
            false => all_right(&f.name, &itself),
            // Where a window's page has just been given back, the first of two positions misses its oldest key.
            true => assert!(itself.accepted * 10 > itself.tokens * 9, "{}: {itself:?}", f.name),
        }
        some_wrong(&f.name, &check(&drafted_by(&config, f.weights(f.seed + 7), 2)));
    }
}

/// The trained model: prompt lookup is right now and then, and it drafts for itself.
#[test]
fn stories260k_answers_the_same_with_drafts() {
    let Some(stories) = Stories::open() else { return };
    let golden = stories.golden();
    let found = golden.check_every_way_with(&cpu, Some(&lookup(4, 1, 4)));
    assert!(found.accepted > 0, "{found:?}");
    let Some(Stories { config, checkpoint, .. }) = Stories::open() else { return };
    all_right("stories260k", &golden.check_every_way_with(&cpu, Some(&drafted_by(&config, checkpoint, 8))));
    let other = DummySource { seed: 3, std: 0.02, dtype: DType::F32 };
    some_wrong("stories260k", &golden.check_every_way_with(&cpu, Some(&drafted_by(&config, other, 1))));
}

/// Rules that look at the tokens before, or at how many there are, and requests that end among drafts.
fn rules(vocab: u32) -> Vec<SamplingParams> {
    let base = || SamplingParams { max_tokens: 40, temperature: 0.4, ..SamplingParams::default() };
    let half = || (0..vocab / 2).collect::<Vec<u32>>();
    vec![
        SamplingParams { temperature: 0.0, ..base() },
        base(),
        SamplingParams { temperature: 1.0, top_k: 12, top_p: 0.9, min_p: 0.02, ..base() },
        SamplingParams { repetition_penalty: 1.3, presence_penalty: 0.5, frequency_penalty: 0.4, ..base() },
        SamplingParams { temperature: 0.0, frequency_penalty: 0.3, ..base() },
        SamplingParams {
            bad_words: (0..vocab - 1).step_by(3).map(|i| vec![i, i + 1]).chain([vec![5]]).collect(),
            ..base()
        },
        SamplingParams { allowed_token_ids: Some(half()), logit_bias: vec![(3, 2.0), (9, -1.0)], ..base() },
        SamplingParams { eos_token_ids: half().split_off(20), min_tokens: 9, ..base() },
        SamplingParams { stop_token_ids: half(), min_tokens: 3, ..base() },
        SamplingParams { eos_token_ids: half(), ignore_eos: true, max_tokens: 17, ..base() },
        SamplingParams { max_tokens: 2, ..base() },
        SamplingParams { logprobs: Some(3), ..base() },
    ]
}

fn run_rules(f: &Family, options: &EngineOptions) -> (Vec<Collected>, DraftCounts) {
    let (config, source) = (f.config(), f.weights(f.seed));
    let e = TestEngine::start(cpu(), &config, &source, options);
    let loops: Vec<u32> = (0..48).map(|i| [3, 9, 4, 9, 3, 5][i % 6]).collect();
    let mut ids = Vec::new();
    for (i, params) in rules(config.vocab_size).into_iter().enumerate() {
        // Several answers to one prompt differ by their seeds.
        for seed in 0..3 {
            let prompt = &loops[..7 + 3 * i];
            ids.push(e.submit(prompt, SamplingParams { seed: 100 * i as u64 + seed, ..params.clone() }));
        }
    }
    (e.wait(&ids), e.stats().drafts)
}

#[test]
fn every_rule_gives_the_same_tokens_with_drafts() {
    for f in families().iter().filter(|f| ["llama", "qwen2-mixed-window"].contains(&f.name.as_str())) {
        for steps_in_flight in [1, 2] {
            let plain =
                EngineOptions { dtype: Some(DType::F32), steps_in_flight, ..EngineOptions::default() };
            let (want, none) = run_rules(f, &plain);
            assert_eq!(none, DraftCounts::default());
            let itself = drafted_by(&f.config(), f.weights(f.seed), 4);
            let other = drafted_by(&f.config(), f.weights(f.seed + 1), 3);
            for (how, speculation) in
                [("lookup", lookup(4, 1, 4)), ("its own draft", itself), ("a bad draft", other)]
            {
                let options = EngineOptions { speculation: Some(speculation), ..plain.clone() };
                let (got, drafts) = run_rules(f, &options);
                assert!(drafts.accepted > 0 && drafts.accepted < drafts.tokens, "{how}: {drafts:?}");
                for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                    let at = format!("{} with {how}, request {i}, {steps_in_flight} in flight", f.name);
                    assert_eq!((&g.tokens, g.finish, g.ends), (&w.tokens, w.finish, 1), "{at}");
                    assert_eq!(g.logprobs, w.logprobs, "{at}");
                }
            }
        }
    }
}

/// Draws for the test of the distribution, and ids there are.
const DRAWS: u64 = 20_000;
const IDS: usize = 16;
const TEMPERATURE: f32 = 0.5;

/// A Llama of two layers with [`IDS`] ids.
fn small() -> (ModelConfig, DummySource) {
    let mut family = families().remove(0);
    family.config.insert("vocab_size".to_owned(), IDS.into());
    let config = family.config();
    (config, DummySource { seed: 5, std: 0.2, dtype: DType::F32 })
}

/// Probabilities of the id after `tokens` at a temperature, out of log-probabilities without drafts.
fn probabilities(e: &TestEngine, tokens: &[u32], temperature: f32) -> Vec<f64> {
    let all = SamplingParams {
        max_tokens: 1,
        ignore_eos: true,
        logprobs: Some(IDS as u32),
        ..SamplingParams::default()
    };
    let got = e.generate(tokens, all);
    let mut weights = vec![0.0; IDS];
    for (id, logprob) in &got.logprobs[0].top {
        weights[*id as usize] = f64::from(logprob / temperature).exp();
    }
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|w| w / sum).collect()
}

/// Pearson's statistic of pairs of ids against their probabilities, and its degrees of freedom; pairs expected fewer
/// than five times count as one.
fn chi_square(counts: &[f64], expected: &[f64]) -> (f64, f64) {
    let (mut statistic, mut cells) = (0.0, 0.0);
    let (mut rare_count, mut rare) = (0.0, 0.0);
    for (count, expected) in counts.iter().zip(expected) {
        if *expected < 5.0 {
            rare_count += count;
            rare += expected;
            continue;
        }
        statistic += (count - expected).powi(2) / expected;
        cells += 1.0;
    }
    if rare > 0.0 {
        statistic += (rare_count - rare).powi(2) / rare;
        cells += 1.0;
    }
    (statistic, cells - 1.0)
}

/// Of 20,000 answers of two tokens the pairs are distributed as the model says, with drafts for the second that are
/// right for some and wrong for most. The bound is the degrees of freedom and five standard deviations of a chi-square
/// (sqrt(2 df)): a right sampler fails it once in a million sets of seeds, and these seeds are fixed. The same draws
/// against a temperature a tenth higher go far beyond it, so the test sees differences of that size.
#[test]
fn the_distribution_is_kept() {
    let (config, source) = small();
    // Each id stands twice, so that whatever comes first has a draft.
    let prompt: Vec<u32> = (0..2 * IDS as u32).map(|i| i * 5 % IDS as u32).collect();
    let plain = TestEngine::start(cpu(), &config, &source, &EngineOptions::default());
    let joint = |temperature: f32| -> Vec<f64> {
        let first = probabilities(&plain, &prompt, temperature);
        let pair = |(id, p): (usize, f64)| {
            let second = probabilities(&plain, &[&prompt[..], &[id as u32]].concat(), temperature);
            second.into_iter().map(move |q| p * q * DRAWS as f64)
        };
        first.into_iter().enumerate().flat_map(pair).collect()
    };
    let (expected, hotter) = (joint(TEMPERATURE), joint(TEMPERATURE * 1.1));
    let other = drafted_by(&config, DummySource { seed: 6, ..source }, 1);
    for (speculation, least) in [(lookup(1, 1, 1), 100), (other, 200)] {
        let options = EngineOptions { speculation: Some(speculation), ..EngineOptions::default() };
        let e = TestEngine::start(cpu(), &config, &source, &options);
        let counts = draw_pairs(&e, &prompt);
        let drafts = e.stats().drafts;
        let ((kept, df), (other, _)) = (chi_square(&counts, &expected), chi_square(&counts, &hotter));
        let bound = df + 5.0 * (2.0 * df).sqrt();
        println!("chi-square {kept:.1} of {bound:.1}, {df} degrees; a tenth hotter {other:.1}; {drafts:?}");
        assert!(drafts.accepted > least && drafts.tokens - drafts.accepted > 5_000, "{drafts:?}");
        assert!(df > 40.0 && kept < bound, "chi-square {kept} with {df} degrees of freedom, bound {bound}");
        assert!(other > bound, "draws of another temperature would pass: {other}");
    }
}

fn draw_pairs(e: &TestEngine, prompt: &[u32]) -> Vec<f64> {
    let mut counts = vec![0.0; IDS * IDS];
    for seeds in (0..DRAWS).collect::<Vec<_>>().chunks(1_000) {
        let params = |seed: u64| SamplingParams {
            seed,
            max_tokens: 3,
            ignore_eos: true,
            temperature: TEMPERATURE,
            ..SamplingParams::default()
        };
        let ids: Vec<_> = seeds.iter().map(|seed| e.submit(prompt, params(*seed))).collect();
        for got in e.wait(&ids) {
            counts[got.tokens[0] as usize * IDS + got.tokens[1] as usize] += 1.0;
        }
    }
    counts
}
