//! Golden answers checked in every way a request can be served.

use std::sync::Arc;

use engine_core::DType;
use engine_core::backend::{Backend, CaptureLevel};
use engine_core::config::ModelConfig;
use engine_core::engine::EngineOptions;
use engine_core::engine::build::MaxModelLen;
use engine_core::engine::types::{DraftCounts, TokenLogprobs};
use engine_core::kv::PrefixCaching;
use engine_core::loader::source::WeightSource;
use engine_core::sampling::SamplingParams;
use engine_core::scheduler::ChunkedPrefill;
use engine_core::speculate::Speculation;

use crate::engine::{Collected, TestEngine};

/// One prompt and what an independent implementation continued it with, greedily.
#[derive(Clone, Debug, serde::Deserialize)]
pub struct Case {
    pub prompt: Vec<u32>,
    pub greedy: Vec<u32>,
    pub logprobs: Vec<f32>,
    pub prompt_logprobs: Vec<Option<f32>>,
}

impl Case {
    /// The prompt and its continuation.
    fn text(&self) -> Vec<u32> {
        self.prompt.iter().chain(&self.greedy).copied().collect()
    }
}

/// A model and its cases.
pub struct Golden<'a> {
    pub name: &'a str,
    pub config: &'a ModelConfig,
    pub source: &'a dyn WeightSource,
    pub cases: &'a [Case],
}

/// Log-probabilities in float32 against float64, for models of a few layers: 1e-3 is far above what rounding adds
/// and far below what any mistake in the arithmetic changes.
const LOGPROB_TOLERANCE: f32 = 1e-3;

impl Golden<'_> {
    /// Runs every case in every way; panics at the first difference.
    pub fn check_every_way(&self, backend: &dyn Fn() -> Arc<dyn Backend>) {
        self.check_every_way_with(backend, None);
    }

    /// The same with drafts; says what came of them.
    pub fn check_every_way_with(
        &self,
        backend: &dyn Fn() -> Arc<dyn Backend>,
        speculation: Option<&Speculation>,
    ) -> DraftCounts {
        let mut drafts = DraftCounts::default();
        for capture in [CaptureLevel::Any, CaptureLevel::Never] {
            let base = EngineOptions { speculation: speculation.cloned(), ..self.options(capture) };
            drafts = self.alone(backend(), &base);
            self.among_others(backend(), &base);
            self.chunked(backend(), &base);
            self.warm_prefix(backend(), &base);
            self.preempted(backend(), &base);
        }
        drafts
    }

    /// One request at a time, eagerly: for a device too slow for more.
    pub fn check_alone(&self, backend: &dyn Fn() -> Arc<dyn Backend>) {
        self.alone(backend(), &self.options(CaptureLevel::Never));
    }

    /// In bfloat16, where a device may round the rows that meet quantized weights to int8: the log-probabilities of each
    /// golden text stay within `bound` of the golden ones, a token that is likelier than the golden one is so by no
    /// more than both may be off, and a text's bits are the same alone, in chunks of 7 and among the others.
    pub fn check_rounded(&self, backend: &dyn Fn() -> Arc<dyn Backend>, bound: f32) {
        let dtype = Some(DType::Bf16);
        let base = EngineOptions { dtype, ..self.options(CaptureLevel::Any) };
        let chunked_prefill = ChunkedPrefill::On { long_prefill_token_threshold: Some(7) };
        let chunked = EngineOptions { chunked_prefill, ..base.clone() };
        let whole = TestEngine::start(backend(), self.config, self.source, &base);
        let in_chunks = TestEngine::start(backend(), self.config, self.source, &chunked);
        let params = || SamplingParams {
            prompt_logprobs: Some(1),
            max_tokens: 1,
            temperature: 0.0,
            ..Default::default()
        };
        let texts: Vec<Vec<u32>> = self.cases.iter().map(Case::text).collect();
        let alone: Vec<_> = texts.iter().map(|t| self.scores(whole.generate(t, params()))).collect();
        let ids: Vec<_> = texts.iter().map(|t| whole.submit(t, params())).collect();
        let mut worst = 0.0f32;
        for (i, among) in whole.wait(&ids).into_iter().enumerate() {
            let at = format!("{} case {i}", self.name);
            assert_eq!(self.scores(among), alone[i], "{at} among others");
            assert_eq!(self.scores(in_chunks.generate(&texts[i], params())), alone[i], "{at} in chunks of 7");
            let case = &self.cases[i];
            let golden = case.prompt_logprobs.iter().copied().chain(case.logprobs.iter().copied().map(Some));
            for (t, (got, want)) in alone[i].iter().zip(golden.take(texts[i].len())).enumerate() {
                let (Some((logprob, best)), Some(want)) = (got, want) else { continue };
                worst = worst.max((logprob - want).abs());
                assert!((logprob - want).abs() <= bound, "{at} token {t}: {logprob} against {want}");
                let generated = t >= case.prompt.len();
                assert!(
                    !generated || best - logprob <= 2.0 * bound,
                    "{at} token {t}: {logprob}, best {best}"
                );
            }
        }
        println!("{}: log-probabilities off by at most {worst:.3}", self.name);
    }

    /// The log-probability of each token of a prompt, and the best there.
    fn scores(&self, got: Collected) -> Vec<Option<(f32, f32)>> {
        let entries = got.prompt_logprobs.unwrap_or_else(|| panic!("{}: no log-probabilities", self.name));
        let best = |e: &TokenLogprobs| e.top.first().map_or(e.logprob, |top| top.1);
        entries.iter().map(|e| e.as_ref().map(|e| (e.logprob, best(e)))).collect()
    }

    fn options(&self, capture: CaptureLevel) -> EngineOptions {
        let max_model_len = Some(MaxModelLen::Tokens(self.config.max_position_embeddings));
        EngineOptions { capture, max_model_len, dtype: Some(DType::F32), ..EngineOptions::default() }
    }

    fn alone(&self, backend: Arc<dyn Backend>, base: &EngineOptions) -> DraftCounts {
        let e = TestEngine::start(backend, self.config, self.source, base);
        for (i, case) in self.cases.iter().enumerate() {
            self.compare("alone", i, &e.generate(&case.prompt, greedy(case)));
            let p = SamplingParams { prompt_logprobs: Some(1), ..greedy(case) };
            let got = e.generate(&case.prompt, p);
            self.compare("with prompt log-probabilities", i, &got);
            self.compare_prompt(i, &got);
        }
        e.stats().drafts
    }

    fn among_others(&self, backend: Arc<dyn Backend>, base: &EngineOptions) {
        let e = TestEngine::start(backend, self.config, self.source, base);
        let vocab = self.config.vocab_size;
        let noise = |i: u64| -> Vec<u32> {
            (0..3 + i * 5).map(|t| ((t * 37 + i * 11) % u64::from(vocab)) as u32).collect()
        };
        let sampled =
            |i| SamplingParams { seed: i, max_tokens: 40, ignore_eos: true, ..SamplingParams::default() };
        let others: Vec<_> = (0..15).map(|i| e.submit(&noise(i), sampled(i))).collect();
        let ids: Vec<_> = self.cases.iter().map(|c| e.submit(&c.prompt, greedy(c))).collect();
        for (i, got) in e.wait(&ids).iter().enumerate() {
            self.compare("among 15 others", i, got);
        }
        e.wait(&others);
    }

    fn chunked(&self, backend: Arc<dyn Backend>, base: &EngineOptions) {
        let chunked_prefill = ChunkedPrefill::On { long_prefill_token_threshold: Some(7) };
        let options = EngineOptions { chunked_prefill, ..base.clone() };
        let e = TestEngine::start(backend, self.config, self.source, &options);
        for (i, case) in self.cases.iter().enumerate() {
            self.compare("in chunks of 7", i, &e.generate(&case.prompt, greedy(case)));
        }
    }

    fn warm_prefix(&self, backend: Arc<dyn Backend>, base: &EngineOptions) {
        let options = EngineOptions { prefix_caching: PrefixCaching::AllPages, ..base.clone() };
        let e = TestEngine::start(backend, self.config, self.source, &options);
        for (i, case) in self.cases.iter().enumerate() {
            e.generate(&case.prompt, greedy(case));
            let got = e.generate(&case.prompt, greedy(case));
            self.compare("with a warm prefix", i, &got);
            // The cache holds whole pages, and one prompt token is always computed.
            let page = e.running.report.block_size;
            let window = self.config.layer_windows.iter().any(Option::is_some);
            if case.prompt.len() as u32 > page && !window {
                assert_eq!(
                    got.cached_tokens,
                    (case.prompt.len() as u32 - 1) / page * page,
                    "{} {i}",
                    self.name
                );
            }
        }
    }

    /// A pool that admits the longest request twice but cannot let both grow, with all cases at once.
    fn preempted(&self, backend: Arc<dyn Backend>, base: &EngineOptions) {
        let longest =
            self.cases.iter().map(|c| c.prompt.len() + c.greedy.len()).max().unwrap_or(1) as u32 + 1;
        let probe = TestEngine::start(backend.clone(), self.config, self.source, base);
        let report = &probe.running.report;
        let page_bytes = report.kv_bytes / u64::from(report.kv_pages);
        let groups = probe.running.report.kv_groups;
        let pages = u64::from(groups) * u64::from(2 * longest.div_ceil(report.block_size) - 2) + 1;
        drop(probe);
        let options = EngineOptions {
            kv_cache_memory_bytes: Some(pages * page_bytes),
            max_model_len: Some(MaxModelLen::Tokens(longest)),
            prefix_caching: PrefixCaching::Off,
            ..base.clone()
        };
        let e = TestEngine::start(backend, self.config, self.source, &options);
        let twice: Vec<_> = self.cases.iter().chain(self.cases).collect();
        let ids: Vec<_> = twice.iter().map(|c| e.submit(&c.prompt, greedy(c))).collect();
        for (i, got) in e.wait(&ids).iter().enumerate() {
            self.compare("after preemption", i % self.cases.len(), got);
        }
        assert!(e.stats().preemptions > 0, "{}: nothing was preempted in {pages} pages", self.name);
    }

    fn compare(&self, how: &str, case: usize, got: &Collected) {
        let want = &self.cases[case];
        let at = format!("{} case {case} {how}", self.name);
        assert_eq!(got.tokens, want.greedy, "{at}");
        for (i, (g, w)) in got.logprobs.iter().zip(&want.logprobs).enumerate() {
            assert!((g.logprob - w).abs() < LOGPROB_TOLERANCE, "{at}: token {i}: {} against {w}", g.logprob);
            assert_eq!((g.rank, g.token), (1, want.greedy[i]), "{at}: token {i}");
        }
        assert_eq!(got.logprobs.len(), want.greedy.len(), "{at}");
    }

    fn compare_prompt(&self, case: usize, got: &Collected) {
        let want = &self.cases[case];
        if want.prompt.len() == 1 {
            return;
        }
        let entries =
            got.prompt_logprobs.as_ref().unwrap_or_else(|| panic!("{} case {case}: none", self.name));
        assert_eq!(entries.len(), want.prompt.len());
        for (i, (g, w)) in entries.iter().zip(&want.prompt_logprobs).enumerate() {
            match (g, w) {
                (None, None) => {}
                (Some(g), Some(w)) => {
                    assert_eq!(g.token, want.prompt[i]);
                    let difference = (g.logprob - w).abs();
                    assert!(
                        difference < LOGPROB_TOLERANCE,
                        "{} case {case} prompt token {i}: {g:?} {w}",
                        self.name
                    );
                }
                other => panic!("{} case {case} prompt token {i}: {other:?}", self.name),
            }
        }
    }
}

fn greedy(case: &Case) -> SamplingParams {
    SamplingParams {
        temperature: 0.0,
        max_tokens: case.greedy.len() as u32,
        ignore_eos: true,
        logprobs: Some(0),
        ..SamplingParams::default()
    }
}
