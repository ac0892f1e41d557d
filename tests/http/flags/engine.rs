//! Memory, cache, scheduler, device.

use serde_json::{Value, json};

use crate::effects;
use crate::harness::{LONG, cache_label, complete, get, metric, ready};
use crate::process::{Server, bundled_model, run};

const BASE: &str = "engine=\"0\",model_name=\"pallium-demo\"";

/// Whether no step of a server computed more than so many tokens (a bound of the histogram).
fn steps_within(server: &Server, tokens: u32) -> bool {
    let steps = |series: &str, more: &str| {
        metric(server, &format!("vllm:iteration_tokens_total_{series}{{{BASE}{more}}}"))
    };
    let all = steps("count", "");
    assert!(all > 0.0);
    steps("bucket", &format!(",le=\"{tokens}.0\"")) == all
}

/// Prompts of `tokens` ids each, no two alike.
fn prompts(count: usize, tokens: usize) -> Value {
    (0..count).map(|i| json!(vec![300 + i; tokens])).collect()
}

/// Whether prompts of 40 tokens are computed in steps of at most so many.
fn prefills_within(words: &[&str], tokens: u32) -> bool {
    let server = Server::start(words);
    assert_eq!(complete(&server, &json!({"prompt": prompts(1, 40), "max_tokens": 2})).status, 200);
    steps_within(&server, tokens)
}

/// The answer to more work than the queue may hold.
fn queued(words: &[&str], prompt: Value) -> (u16, Option<String>) {
    let words = [LONG, &["--max-num-seqs", "1"], words].concat();
    let reply =
        complete(&Server::start(&words), &json!({"prompt": prompt, "max_tokens": 400, "ignore_eos": true}));
    (reply.status, reply.header("retry-after").map(str::to_owned))
}

/// Draft tokens that were verified and accepted for a greedy answer that begins to repeat itself, which is the same
/// without drafts. The last number: places of a draft that are counted.
fn drafts(words: &[&str]) -> (f64, f64, usize) {
    let body = json!({"prompt": "one two three one two three one two three one", "max_tokens": 60, "temperature": 0,
        "ignore_eos": true});
    let server = Server::start(words);
    let text = complete(&server, &body).text();
    assert_eq!(text, complete(&Server::start(&[]), &body).text(), "{words:?}");
    let count = |what: &str| metric(&server, &format!("vllm:spec_decode_num_{what}_tokens_total{{{BASE}}}"));
    let place = "vllm:spec_decode_num_accepted_tokens_per_pos_total{";
    let places = get(&server, "/metrics").body.lines().filter(|line| line.starts_with(place)).count();
    (count("draft"), count("accepted"), places)
}

/// Prompt tokens that a second, equal request finds cached.
fn cached(words: &[&str]) -> u64 {
    let server = Server::start(&[words, &["--enable-prompt-tokens-details"]].concat());
    let body = json!({"prompt": prompts(1, 40), "max_tokens": 1});
    complete(&server, &body);
    let usage = complete(&server, &body).json()["usage"].clone();
    usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or_else(|| panic!("{usage}"))
}

effects! {
    "kv-cache-memory-bytes" fn kv_bytes() {
        let bytes = |words: &[&str]| ready(words)["kv_bytes"].as_u64().unwrap();
        let asked = bytes(&["--kv-cache-memory-bytes", "16M"]);
        assert!((8 << 20..=16 << 20).contains(&asked) && asked != bytes(&[]), "{asked}");
    }
    "gpu-memory-utilization" fn memory_share() {
        let server = Server::start(&["--gpu-memory-utilization", "0.5"]);
        assert!(server.log().contains("--gpu-memory-utilization: without effect on the CPU"));
        assert_eq!(cache_label(&server, "gpu_memory_utilization"), "0.5");
    }
    "kv-cache-dtype" fn kv_dtype() {
        let pages = ["--num-gpu-blocks-override", "64"];
        let bytes = |dtype| {
            let words = [&pages[..], &["--kv-cache-dtype", dtype, "--max-model-len", "512"]].concat();
            ready(&words)["kv_bytes"].as_u64().unwrap()
        };
        assert_eq!(bytes("float32"), 2 * bytes("bfloat16"));
        assert_eq!(cache_label(&Server::start(&["--kv-cache-dtype", "float16"]), "cache_dtype"), "float16");
    }
    "block-size" fn block_size() {
        let server = Server::start(&["--block-size", "32"]);
        assert_eq!(cache_label(&server, "block_size"), "32");
        // Only whole pages of a prompt can be found again.
        assert_eq!((cached(&["--block-size", "32"]), cached(&["--block-size", "16"])), (32, 32));
        assert_eq!(cached(&["--block-size", "64"]), 0);
    }
    "num-gpu-blocks-override" fn pages() {
        let words = ["--num-gpu-blocks-override", "64", "--max-model-len", "512"];
        let tokens = ready(&words)["kv_tokens"].as_u64().unwrap();
        assert!((60 * 16..=64 * 16).contains(&tokens), "{tokens}");
        let short = ["--num-gpu-blocks-override", "4", "--max-model-len", "512"];
        let (code, said) = run(&[&["serve", "--port", "0"], &short[..]].concat());
        assert!(code == Some(1) && said.contains("--num-gpu-blocks-override"), "{said}");
    }
    "enable-prefix-caching" fn prefix_caching() {
        assert_eq!((cached(&["--no-enable-prefix-caching"]), cached(&[])), (0, 32));
    }
    "max-num-seqs" fn max_num_seqs() {
        for (most, within) in [("1", true), ("8", false)] {
            let server = Server::start(&["--max-num-seqs", most]);
            let body = json!({"prompt": prompts(4, 1), "max_tokens": 64, "ignore_eos": true});
            assert_eq!(complete(&server, &body).status, 200);
            assert_eq!(steps_within(&server, 1), within, "--max-num-seqs {most}");
        }
        assert_eq!(ready(&["--max-num-seqs", "3"])["max_num_seqs"], 3);
    }
    "max-num-batched-tokens" fn budget() {
        assert!(prefills_within(&["--max-num-seqs", "4", "--max-num-batched-tokens", "16"], 16));
        assert!(!prefills_within(&[], 16));
    }
    "long-prefill-token-threshold" fn long_prefill() {
        assert!(prefills_within(&["--long-prefill-token-threshold", "8"], 8));
    }
    "enable-chunked-prefill" fn chunked_prefill() {
        let small = ["serve", "--port", "0", "--max-num-batched-tokens", "128"];
        let (code, said) = run(&[&small[..], &["--no-enable-chunked-prefill"]].concat());
        assert!(code == Some(1) && said.contains("--no-enable-chunked-prefill"), "{said}");
        assert!(prefills_within(&["--no-enable-chunked-prefill"], 64));
        assert!(!prefills_within(&["--no-enable-chunked-prefill"], 32));
    }
    "max-num-queued-reqs" fn queued_requests() {
        assert_eq!(queued(&["--max-num-queued-reqs", "2"], prompts(50, 4)), (503, Some("1".to_owned())));
        assert_eq!(queued(&[], prompts(50, 4)).0, 200);
    }
    "max-num-queued-tokens" fn queued_tokens() {
        assert_eq!(queued(&["--max-num-queued-tokens", "50"], prompts(20, 30)), (503, Some("1".to_owned())));
        assert_eq!(queued(&["--max-num-queued-tokens", "5000"], prompts(20, 30)).0, 200);
    }
    "scheduling-policy" fn policy() {
        let body = json!({"prompt": "Once", "max_tokens": 1, "priority": 3});
        assert_eq!(complete(&Server::start(&["--scheduling-policy", "priority"]), &body).status, 200);
        assert_eq!(complete(&Server::start(&[]), &body).status, 400);
    }
    "speculative-config" fn speculative_config() {
        let json = r#"{"method":"ngram","num_speculative_tokens":4,"prompt_lookup_max":4,"prompt_lookup_min":2}"#;
        let (drafted, accepted, places) = drafts(&["--speculative-config", json]);
        assert!(accepted > 0.0 && accepted <= drafted && places == 4, "{accepted} of {drafted}, {places} places");
        // One more key: nothing is drafted while more than no request runs.
        let off = drafts(&["-sc", json, "--speculative-config.disable_by_batch_size", "0"]);
        assert_eq!((off.0, off.2), (0.0, 4));
        assert!(!get(&Server::start(&[]), "/metrics").body.contains("spec_decode"));
        let (code, said) = run(&["serve", "--port", "0", "--speculative-config.method", "eagle"]);
        assert!(code == Some(1) && said.contains("num_speculative_tokens"), "{said}");
    }
    "spec-method" fn spec_method() {
        assert!(drafts(&["--spec-method", "ngram", "--num-speculative-tokens", "2"]).0 > 0.0);
    }
    "spec-model" fn spec_model() {
        // A model agrees with itself.
        let (drafted, accepted, _) =
            drafts(&["--spec-model", bundled_model().to_str().unwrap(), "--spec-tokens", "3"]);
        assert!(drafted > 0.0 && accepted == drafted, "{accepted} of {drafted}");
    }
    "spec-tokens" fn spec_tokens() {
        for tokens in [1, 3] {
            let words = ["--spec-method", "ngram", "--spec-tokens", &tokens.to_string()];
            assert_eq!(drafts(&words).2, tokens);
        }
    }
    "device" fn device() {
        let name = |device| ready(&["--device", device])["device"].as_str().unwrap().to_owned();
        assert_ne!(name("cpu"), name("null"));
        let (code, said) = run(&["serve", "--port", "0", "--device", "wgpu"]);
        assert!(code == Some(1) && said.contains("--device wgpu"), "{said}");
    }
    "threads" fn threads() {
        let device = ready(&["--threads", "1"])["device"].as_str().unwrap().to_owned();
        assert!(device.contains("1 thread"), "{device}");
    }
    "allow-host-fallback" fn host_fallback() {
        // On a GPU it completes the backend (tests/conformance/fallback.rs); the CPU says that it needs none.
        let server = Server::start(&["--allow-host-fallback"]);
        assert!(server.log().contains("--allow-host-fallback: without effect on the CPU"), "{}", server.log());
    }
}
