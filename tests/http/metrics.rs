//! The core metrics of vLLM, name by name: type, labels, buckets. Dashboards and routers rely on them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;
use server::cli::EngineArgs;
use server::client::mock::MockConfig;
use server::http::HttpOptions;
use tests::server::Server;

use crate::harness::{HttpServer, TestServer, raw};

/// One metric as it is scraped.
struct Metric {
    name: &'static str,
    kind: &'static str,
    /// Beside `engine` and `model_name`: a label and its values.
    label: Option<(&'static str, &'static [&'static str])>,
    bounds: &'static [f64],
}

const fn gauge(name: &'static str) -> Metric {
    Metric { name, kind: "gauge", label: None, bounds: &[] }
}
const fn counter(name: &'static str) -> Metric {
    Metric { name, kind: "counter", label: None, bounds: &[] }
}
const fn histogram(name: &'static str, bounds: &'static [f64]) -> Metric {
    Metric { name, kind: "histogram", label: None, bounds }
}
const fn by(metric: Metric, label: &'static str, values: &'static [&'static str]) -> Metric {
    Metric { label: Some((label, values)), ..metric }
}

const TTFT: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
const ITL: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
const E2E: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
];
/// 1, 2, 5, 10 ... up to a context of 256 tokens.
const TOKENS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0];
const STEP_TOKENS: &[f64] =
    &[1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];
const PREEMPTIONS: &[f64] = &[1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0];
const SOURCES: &[&str] = &["local_compute", "local_cache_hit", "external_kv_transfer"];
const CACHES: &[&str] = &["device", "host", "p2p", "disk", "external_unspecified"];
const FINISHES: &[&str] = &["stop", "length", "abort", "error", "repetition"];
const REJECTIONS: &[&str] = &["max_num_queued_reqs", "max_num_queued_tokens", "max_num_seqs_per_key"];

const METRICS: &[Metric] = &[
    gauge("num_requests_running"),
    gauge("num_requests_waiting"),
    by(gauge("num_requests_waiting_by_reason"), "reason", &["capacity", "deferred"]),
    by(gauge("engine_sleep_state"), "sleep_state", &["awake", "weights_offloaded", "discard_all"]),
    gauge("kv_cache_usage_perc"),
    counter("prefix_cache_queries_total"),
    counter("prefix_cache_hits_total"),
    counter("external_prefix_cache_queries_total"),
    counter("external_prefix_cache_hits_total"),
    counter("mm_cache_queries_total"),
    counter("mm_cache_hits_total"),
    counter("num_preemptions_total"),
    counter("prompt_tokens_total"),
    by(counter("prompt_tokens_by_source_total"), "source", SOURCES),
    counter("prompt_tokens_cached_total"),
    by(counter("prompt_tokens_cached_by_source_total"), "source", CACHES),
    counter("generation_tokens_total"),
    by(counter("request_success_total"), "finished_reason", FINISHES),
    by(counter("admission_rejections_total"), "reason", REJECTIONS),
    histogram("request_prompt_tokens", TOKENS),
    histogram("request_generation_tokens", TOKENS),
    histogram("request_max_num_generation_tokens", TOKENS),
    histogram("request_params_max_tokens", TOKENS),
    histogram("request_params_n", &[1.0, 2.0, 5.0, 10.0, 20.0]),
    histogram("request_prefill_kv_computed_tokens", TOKENS),
    histogram("iteration_tokens_total", STEP_TOKENS),
    histogram("time_to_first_token_seconds", TTFT),
    histogram("inter_token_latency_seconds", ITL),
    histogram("request_time_per_output_token_seconds", ITL),
    histogram("e2e_request_latency_seconds", E2E),
    histogram("request_queue_time_seconds", E2E),
    histogram("request_inference_time_seconds", E2E),
    histogram("request_prefill_time_seconds", E2E),
    histogram("request_decode_time_seconds", E2E),
    histogram("request_num_preemptions", PREEMPTIONS),
];

/// A scrape: types by name, and per sample name its label sets with their values.
#[derive(Default)]
struct Scrape {
    types: BTreeMap<String, String>,
    samples: BTreeMap<String, Vec<(Labels, f64)>>,
}

type Labels = BTreeMap<String, String>;

impl Scrape {
    fn parse(text: &str) -> Scrape {
        let mut scrape = Scrape::default();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert_eq!(scrape.types.insert(name.to_owned(), kind.to_owned()), None, "{name} comes twice");
            } else if !line.starts_with('#') {
                let (series, value) = line.rsplit_once(' ').unwrap();
                let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
                let pairs = labels.trim_end_matches('}').split("\",").filter(|pair| !pair.is_empty());
                let labels: BTreeMap<String, String> = pairs
                    .map(|pair| pair.split_once("=\"").unwrap())
                    .map(|(label, value)| (label.to_owned(), value.trim_end_matches('"').to_owned()))
                    .collect();
                let all = scrape.samples.entry(name.to_owned()).or_default();
                assert!(all.iter().all(|(other, _)| *other != labels), "{series} comes twice");
                all.push((labels, value.parse().unwrap()));
            }
        }
        scrape
    }

    /// The sum over all label sets.
    fn value(&self, name: &str) -> f64 {
        self.samples.get(name).unwrap_or_else(|| panic!("{name}")).iter().map(|(_, value)| value).sum()
    }
}

fn check(scrape: &Scrape, metric: &Metric) {
    let name = format!("vllm:{}", metric.name);
    assert_eq!(scrape.types.get(&name).map(String::as_str), Some(metric.kind), "{name}");
    let mut wanted = BTreeSet::from(["engine", "model_name"]);
    wanted.extend(metric.label.map(|(label, _)| label));
    let sample = if metric.kind == "histogram" { format!("{name}_count") } else { name.clone() };
    let sets = scrape.samples.get(&sample).unwrap_or_else(|| panic!("{sample}"));
    for (labels, value) in sets {
        assert_eq!(labels.keys().map(String::as_str).collect::<BTreeSet<_>>(), wanted, "{name}");
        assert_eq!((&labels["engine"][..], &labels["model_name"][..]), ("0", "mock"), "{name}");
        assert!(value.is_finite() && *value >= 0.0, "{name}");
    }
    match metric.label {
        Some((label, values)) => {
            assert_eq!(
                sets.iter().map(|(labels, _)| &labels[label][..]).collect::<Vec<_>>(),
                values,
                "{name}"
            );
        }
        None => assert_eq!(sets.len(), 1, "{name}"),
    }
    if metric.kind == "histogram" {
        let buckets = &scrape.samples[&format!("{name}_bucket")];
        let bounds: Vec<f64> = buckets.iter().map(|(labels, _)| labels["le"].parse().unwrap()).collect();
        assert_eq!(bounds, [metric.bounds, &[f64::INFINITY]].concat(), "{name}");
        assert!(buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{name} is cumulative");
        assert_eq!(buckets.last().unwrap().1, sets[0].1, "{name}");
        assert!(scrape.samples.contains_key(&format!("{name}_sum")), "{name}");
    }
}

async fn scrape(server: &HttpServer) -> Scrape {
    Scrape::parse(&server.get("/metrics").await.body)
}

#[tokio::test]
async fn every_core_metric_has_its_name_type_labels_and_buckets() {
    let server = TestServer::new();
    let (address, _signal, _served) = server.listen().await;
    // One scrape before anything happened, one after: the set is the same.
    for asked in [false, true] {
        if asked {
            server.complete(json!({"prompt": "abc", "n": 2, "max_tokens": 8})).await;
            server.complete(json!({"prompt": "abc", "max_tokens": 2, "stream": true})).await;
        }
        let answer = raw(&address, "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
        let scrape = Scrape::parse(body);
        for metric in METRICS {
            check(&scrape, metric);
        }
        let ours =
            scrape.types.keys().filter(|name| name.starts_with("vllm:") && *name != "vllm:cache_config_info");
        let listed: BTreeSet<String> = METRICS.iter().map(|metric| format!("vllm:{}", metric.name)).collect();
        assert_eq!(ours.cloned().collect::<BTreeSet<_>>(), listed, "nothing but what is listed");
    }
}

#[tokio::test]
async fn the_cache_is_described_by_labels() {
    let server = Server::start(EngineArgs::default(), HttpOptions::default(), 256);
    let scrape = scrape(&server).await;
    assert_eq!(scrape.types["vllm:cache_config_info"], "gauge");
    let [(labels, value)] = &scrape.samples["vllm:cache_config_info"][..] else { panic!("one series") };
    assert_eq!((*value, &labels["engine"][..]), (1.0, "0"));
    let stats = server.state.engine.info();
    for name in
        ["block_size", "cache_dtype", "enable_prefix_caching", "gpu_memory_utilization", "num_gpu_blocks"]
    {
        assert!(labels.contains_key(name), "{name} in {labels:?}");
    }
    let tokens: u64 =
        labels["num_gpu_blocks"].parse::<u64>().unwrap() * labels["block_size"].parse::<u64>().unwrap();
    assert_eq!(tokens, stats.kv_cache_tokens);
}

#[tokio::test]
async fn http_and_process_are_measured() {
    let server = TestServer::new().start();
    let body = json!({"prompt": "abc"});
    server.complete(body.clone()).await;
    server.get("/v1/models").await;
    server.get("/health").await;
    let scrape = scrape(&server).await;
    let labels = |name: &str| {
        let sets = scrape.samples.get(name).unwrap_or_else(|| panic!("{name}"));
        sets.iter().map(|(labels, _)| labels.clone()).collect::<Vec<_>>()
    };
    let keys = |labels: &BTreeMap<String, String>| labels.keys().cloned().collect::<Vec<_>>();
    for (name, kind, label_names) in [
        ("http_requests_total", "counter", &["handler", "method", "status"][..]),
        ("http_request_duration_seconds", "histogram", &["handler", "method"]),
        ("http_request_duration_highr_seconds", "histogram", &[]),
        ("http_request_size_bytes", "summary", &["handler"]),
        ("http_response_size_bytes", "summary", &["handler"]),
    ] {
        assert_eq!(scrape.types.get(name).map(String::as_str), Some(kind), "{name}");
        let sample = if kind == "counter" { name.to_owned() } else { format!("{name}_count") };
        let sets = labels(&sample);
        assert!(sets.iter().all(|set| keys(set) == label_names), "{name}: {sets:?}");
        assert!(sets.iter().all(|set| set.get("handler").is_none_or(|path| path != "/health")), "{name}");
        assert_eq!(scrape.value(&sample), 2.0, "{name}");
    }
    assert!(scrape.value("http_response_size_bytes_sum") > 100.0);
    for name in ["virtual_memory_bytes", "resident_memory_bytes", "start_time_seconds", "cpu_seconds_total"] {
        assert!(scrape.value(&format!("process_{name}")) >= 0.0);
    }
    let (open, most) = (scrape.value("process_open_fds"), scrape.value("process_max_fds"));
    assert!(open > 2.0 && open <= most, "{open} of {most}");
    let started_s = scrape.value("process_start_time_seconds");
    let now_s = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((0.0..100_000.0).contains(&(now_s - started_s + 1.0)), "{started_s} {now_s}");
}

#[tokio::test]
async fn token_buckets_end_at_the_context_the_engine_serves() {
    // The model could do 256 tokens; the engine was told to serve 100.
    let args =
        EngineArgs { max_model_len: Some(server::cli::MaxModelLen::Tokens(100)), ..EngineArgs::default() };
    let server = Server::start(args, HttpOptions::default(), 256);
    server.complete(json!({"prompt": "abc", "max_tokens": 60, "ignore_eos": true})).await;
    let scrape = scrape(&server).await;
    let buckets = &scrape.samples["vllm:request_generation_tokens_bucket"];
    let last: Vec<&str> = buckets.iter().rev().take(2).map(|(labels, _)| &labels["le"][..]).collect();
    assert_eq!(last, ["+Inf", "100.0"]);
    assert_eq!((buckets[5].1, buckets[6].1), (0.0, 1.0), "60 tokens: above 50, within 100");
}

#[tokio::test]
async fn preemptions_of_a_request_are_observed() {
    // Two answers that grow past what fits together.
    let args =
        EngineArgs { num_gpu_blocks_override: Some(9), max_num_seqs: Some(2), ..EngineArgs::default() };
    let server = Server::paced(args, HttpOptions::default(), 128);
    let body = json!({"prompt": ["abc", "xyz"], "max_tokens": 100, "ignore_eos": true});
    assert_eq!(server.complete(body).await.status, 200);
    let scrape = scrape(&server).await;
    let preemptions = scrape.value("vllm:num_preemptions_total");
    assert!(preemptions > 0.0);
    assert_eq!(scrape.value("vllm:request_num_preemptions_sum"), preemptions);
    assert_eq!(scrape.value("vllm:request_num_preemptions_count"), 2.0);
    let config = MockConfig::new(64);
    let never = TestServer::with(config, HttpOptions::default()).start();
    never.complete(json!({"prompt": "abc"})).await;
    assert_eq!(self::scrape(&never).await.value("vllm:request_num_preemptions_sum"), 0.0);
}
