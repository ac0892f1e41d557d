//! The engine loop over the do-nothing backend: every request gets exactly the tokens its (seed, position) draw,
//! whatever runs beside it, whatever is preempted or aborted, with one and with two steps in flight.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;

use engine_core::backend::CaptureLevel;
use engine_core::backend::null::{NullBackend, NullConfig, token_at};
use engine_core::config::ModelConfig;
use engine_core::engine::EngineOptions;
use engine_core::engine::build::MaxModelLen;
use engine_core::engine::types::FinishReason;
use engine_core::loader::source::DummySource;
use engine_core::sampling::SamplingParams;
use engine_core::{DType, Error};
use tests::engine::TestEngine;

const IDS: std::ops::Range<u32> = 10..500;

fn config() -> ModelConfig {
    let json = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 512,
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-5}"#;
    ModelConfig::from_json(serde_json::from_str(json).unwrap()).unwrap()
}

const SOURCE: DummySource = DummySource { seed: 1, std: 0.02, dtype: DType::F32 };

fn engine(options: &EngineOptions) -> TestEngine {
    let backend = NullBackend::new(NullConfig { ids: IDS, ..NullConfig::default() });
    TestEngine::start(Arc::new(backend), &config(), &SOURCE, options)
}

fn params(seed: u64, max_tokens: u32) -> SamplingParams {
    SamplingParams { seed, max_tokens, ..SamplingParams::default() }
}

fn expected(seed: u64, prompt: usize, n: u32) -> Vec<u32> {
    (0..n).map(|i| token_at(seed, prompt as u32 + i, &IDS)).collect()
}

/// 60 requests of different lengths at once, under these options.
fn mixed_load(options: &EngineOptions) -> TestEngine {
    let e = engine(options);
    let prompts: Vec<Vec<u32>> = (0..60).map(|i| (0..5 + i * 2).map(|t| 10 + t % 90).collect()).collect();
    let ids: Vec<_> =
        prompts.iter().enumerate().map(|(i, p)| e.submit(p, params(i as u64, 3 + i as u32))).collect();
    for (i, got) in e.wait(&ids).into_iter().enumerate() {
        assert_eq!(got.tokens, expected(i as u64, prompts[i].len(), 3 + i as u32), "request {i}");
        assert_eq!(got.finish, Some(FinishReason::Length), "request {i}");
    }
    e
}

#[test]
fn every_request_gets_its_own_tokens() {
    for steps_in_flight in [1, 2] {
        for capture in [CaptureLevel::Any, CaptureLevel::Never] {
            let options = EngineOptions {
                steps_in_flight,
                capture,
                max_num_seqs: Some(16),
                ..EngineOptions::default()
            };
            mixed_load(&options);
        }
    }
}

#[test]
fn a_small_pool_preempts_and_changes_nothing() {
    let page_bytes = 2 * 16 * 2 * 32 * 4;
    let options = EngineOptions {
        kv_cache_memory_bytes: Some(20 * page_bytes),
        dtype: Some(DType::F32),
        max_num_seqs: Some(16),
        max_num_batched_tokens: Some(64),
        ..EngineOptions::default()
    };
    let e = mixed_load(&options);
    assert!(e.stats().preemptions > 0, "the pool was meant to be too small");
}

#[test]
fn a_stop_id_ends_a_request_and_nothing_follows() {
    let e = engine(&EngineOptions::default());
    let all = expected(7, 4, 40);
    let stop = all[5];
    let first = all.iter().position(|t| *t == stop).unwrap();
    let p = SamplingParams { stop_token_ids: vec![stop], ..params(7, 40) };
    let got = e.generate(&[11, 12, 13, 14], p);
    assert_eq!(got.tokens, all[..=first]);
    assert_eq!(got.finish, Some(FinishReason::Stop { token: Some(stop) }));
}

#[test]
fn abort_ends_waiting_and_running_requests_and_frees_their_pages() {
    let e = engine(&EngineOptions { max_num_seqs: Some(2), ..EngineOptions::default() });
    let ids: Vec<_> = (0..6).map(|i| e.submit(&[11, 12, 13], params(i, 250))).collect();
    for id in &ids {
        e.running.handle.abort(*id);
    }
    for got in e.wait(&ids) {
        assert_eq!(got.ends, 1);
        assert!(matches!(got.finish, Some(FinishReason::Abort | FinishReason::Length)));
    }
    let after = e.generate(&[11, 12, 13], params(9, 5));
    assert_eq!(after.tokens, expected(9, 3, 5));
    assert_eq!((e.stats().running, e.stats().kv_pages_used, e.running.handle.queued()), (0, 0, 0));
}

#[test]
fn stopping_the_engine_ends_what_is_open_once() {
    let e = engine(&EngineOptions::default());
    let ids: Vec<_> = (0..8).map(|i| e.submit(&[11, 12], params(i, 250))).collect();
    e.running.handle.stop();
    for got in e.wait(&ids) {
        assert_eq!(got.ends, 1);
    }
    assert!(e.running.handle.submit(request_of(&[1])).is_err());
}

fn request_of(prompt: &[u32]) -> engine_core::engine::types::Request {
    engine_core::engine::types::Request {
        id: engine_core::engine::types::RequestId(99),
        prompt: prompt.into(),
        params: SamplingParams::default(),
        priority: 0,
        cache_salt: None,
        arrival: std::time::Instant::now(),
    }
}

#[test]
fn too_little_kv_memory_says_what_is_missing_and_which_flag_helps() {
    let start = |options: &EngineOptions| {
        let sink = Box::new(tests::engine::Collector::default());
        let backend = Arc::new(NullBackend::new(NullConfig::default()));
        engine_core::engine::start(backend, &config(), &SOURCE, options, sink, &|_| {})
    };
    let small = EngineOptions { kv_cache_memory_bytes: Some(40_000), ..EngineOptions::default() };
    match start(&small) {
        Err(e @ Error::OutOfMemory { .. }) => {
            let text = e.to_string();
            assert!(text.contains("--kv-cache-memory-bytes") && text.contains("bytes are missing"), "{text}");
        }
        other => panic!("{:?}", other.map(|r| r.report)),
    }
    let auto = EngineOptions { max_model_len: Some(MaxModelLen::Auto), ..small };
    let running = start(&auto).unwrap();
    assert!(running.report.max_model_len < 256, "{:?}", running.report);
    running.handle.stop();
}
