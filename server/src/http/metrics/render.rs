//! One scrape.

use engine_core::engine::types::DraftCounts;

use super::registry::{escape_label, write_header, write_histogram, write_sample};
use super::{Histogram, Metrics, Outcome};
use crate::client::{EngineClient, EngineInfo, EngineStats, ITERATION_TOKENS_BOUNDS};

impl Metrics {
    /// Everything in the text format 0.0.4.
    pub fn render(&self, engine: &dyn EngineClient) -> String {
        let info = engine.info();
        let name = info.model_names.first().map_or("", String::as_str);
        let labels = format!("engine=\"0\",model_name=\"{}\"", escape_label(name));
        let mut page = Page {
            out: String::with_capacity(32 << 10),
            labels,
            max_model_len: f64::from(info.max_model_len),
        };
        self.engine_part(&mut page, &engine.stats(), info);
        self.token_counters(&mut page);
        self.request_histograms(&mut page);
        self.time_histograms(&mut page);
        self.http.write(&mut page.out);
        process_part(&mut page.out);
        page.out
    }

    fn engine_part(&self, page: &mut Page, stats: &EngineStats, info: &EngineInfo) {
        page.gauge(
            "num_requests_running",
            "Number of requests in model execution batches.",
            stats.running as f64,
        );
        page.gauge(
            "num_requests_waiting",
            "Number of requests waiting to be processed.",
            stats.waiting as f64,
        );
        let name = "vllm:num_requests_waiting_by_reason";
        write_header(&mut page.out, name, "gauge", "Number of waiting requests by reason.");
        page.labelled(name, "reason=\"capacity\"", stats.waiting as f64);
        page.labelled(name, "reason=\"deferred\"", 0.0);
        let name = "vllm:engine_sleep_state";
        write_header(
            &mut page.out,
            name,
            "gauge",
            "Engine sleep state; awake = 1 means the engine is awake.",
        );
        for (state, value) in [("awake", 1.0), ("weights_offloaded", 0.0), ("discard_all", 0.0)] {
            page.labelled(name, &format!("sleep_state=\"{state}\""), value);
        }
        page.gauge("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", stats.kv_cache_usage);
        let (queries, hits) = (stats.prefix_cache_queries, stats.prefix_cache_hits);
        page.counter("prefix_cache_queries", "Prefix cache queries, in number of queried tokens.", queries);
        page.counter("prefix_cache_hits", "Prefix cache hits, in number of cached tokens.", hits);
        for (name, what) in [
            ("external_prefix_cache", "External prefix cache (KV pages of other servers)"),
            ("mm_cache", "Multi-modal cache"),
        ] {
            // Neither is there yet; dashboards divide one by the other.
            page.counter(&format!("{name}_queries"), &format!("{what} queries."), 0);
            page.counter(&format!("{name}_hits"), &format!("{what} hits."), 0);
        }
        page.counter(
            "num_preemptions",
            "Cumulative number of preemption from the engine.",
            stats.preemptions,
        );
        if let Some(places) = info.draft_tokens {
            drafts_part(page, &stats.drafts, places);
        }
        let name = "vllm:iteration_tokens_total";
        write_header(&mut page.out, name, "histogram", "Histogram of number of tokens per engine_step.");
        let bounds = ITERATION_TOKENS_BOUNDS.map(|b| b as f64);
        let sum = stats.iteration_tokens_sum as f64;
        write_histogram(&mut page.out, name, &page.labels, &bounds, &stats.iteration_tokens, sum);
        let name = "vllm:cache_config_info";
        write_header(&mut page.out, name, "gauge", "Information of the KV cache configuration.");
        let fields: Vec<String> =
            info.cache_config.iter().map(|(k, v)| format!("{k}=\"{}\"", escape_label(v))).collect();
        let all = [&["engine=\"0\"".to_string()][..], &fields].concat().join(",");
        write_sample(&mut page.out, name, &all, 1.0);
    }

    fn token_counters(&self, page: &mut Page) {
        let (prompt, cached) = (self.prompt_tokens.get(), self.prompt_tokens_cached.get());
        page.counter("prompt_tokens", "Number of prefill tokens processed.", prompt);
        let name = "vllm:prompt_tokens_by_source_total";
        write_header(&mut page.out, name, "counter", "Number of prompt tokens by source.");
        page.labelled(name, "source=\"local_compute\"", (prompt - cached.min(prompt)) as f64);
        page.labelled(name, "source=\"local_cache_hit\"", cached as f64);
        page.labelled(name, "source=\"external_kv_transfer\"", 0.0);
        page.counter("prompt_tokens_cached", "Number of cached prompt tokens.", cached);
        let name = "vllm:prompt_tokens_cached_by_source_total";
        write_header(&mut page.out, name, "counter", "Number of cached prompt tokens by source.");
        page.labelled(name, "source=\"device\"", cached as f64);
        for elsewhere in ["host", "p2p", "disk", "external_unspecified"] {
            page.labelled(name, &format!("source=\"{elsewhere}\""), 0.0);
        }
        page.counter(
            "generation_tokens",
            "Number of generation tokens processed.",
            self.generation_tokens.get(),
        );
        let name = "vllm:request_success_total";
        write_header(&mut page.out, name, "counter", "Count of successfully processed requests.");
        for (i, reason) in Outcome::NAMES.iter().enumerate() {
            page.labelled(name, &format!("finished_reason=\"{reason}\""), self.success[i].get() as f64);
        }
        let name = "vllm:admission_rejections_total";
        write_header(&mut page.out, name, "counter", "Requests refused by a bound.");
        page.labelled(name, "reason=\"max_num_queued_reqs\"", self.rejected_requests.get() as f64);
        page.labelled(name, "reason=\"max_num_queued_tokens\"", self.rejected_tokens.get() as f64);
        page.labelled(name, "reason=\"max_num_seqs_per_key\"", self.rejected_by_key.get() as f64);
    }

    fn request_histograms(&self, page: &mut Page) {
        let tokens: [(&str, &str, &Histogram); 5] = [
            ("request_prompt_tokens", "Number of prefill tokens processed.", &self.request_prompt_tokens),
            ("request_generation_tokens", "Number of generation tokens.", &self.request_generation_tokens),
            (
                "request_max_num_generation_tokens",
                "Histogram of maximum number of requested generation tokens.",
                &self.request_max_num_generation_tokens,
            ),
            (
                "request_params_max_tokens",
                "The max_tokens request parameter.",
                &self.request_params_max_tokens,
            ),
            (
                "request_prefill_kv_computed_tokens",
                "New KV tokens computed during prefill, excluding cached tokens.",
                &self.request_prefill_kv_computed_tokens,
            ),
        ];
        for (name, help, histogram) in tokens {
            page.histogram_up_to(page.max_model_len, name, help, histogram);
        }
        page.histogram("request_params_n", "The n request parameter.", &self.request_params_n);
        page.histogram(
            "request_num_preemptions",
            "Number of preemptions of a request.",
            &self.request_num_preemptions,
        );
    }

    fn time_histograms(&self, page: &mut Page) {
        let all: [(&str, &str, &Histogram); 8] = [
            ("time_to_first_token_seconds", "Time to first token in seconds.", &self.time_to_first_token),
            ("inter_token_latency_seconds", "Inter-token latency in seconds.", &self.inter_token_latency),
            (
                "request_time_per_output_token_seconds",
                "Time per output token of a request in seconds.",
                &self.time_per_output_token,
            ),
            ("e2e_request_latency_seconds", "End to end request latency in seconds.", &self.e2e_latency),
            ("request_queue_time_seconds", "Time spent in WAITING phase for request.", &self.queue_time),
            (
                "request_inference_time_seconds",
                "Time spent in RUNNING phase for request.",
                &self.inference_time,
            ),
            ("request_prefill_time_seconds", "Time spent in PREFILL phase for request.", &self.prefill_time),
            ("request_decode_time_seconds", "Time spent in DECODE phase for request.", &self.decode_time),
        ];
        for (name, help, histogram) in all {
            page.histogram(name, help, histogram);
        }
    }
}

/// The text so far, and the labels that every engine metric has.
struct Page {
    out: String,
    labels: String,
    /// Where bounds of token counts end.
    max_model_len: f64,
}

impl Page {
    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        let name = format!("vllm:{name}");
        write_header(&mut self.out, &name, "gauge", help);
        write_sample(&mut self.out, &name, &self.labels, value);
    }

    /// `name` without `_total`.
    fn counter(&mut self, name: &str, help: &str, value: u64) {
        let name = format!("vllm:{name}_total");
        write_header(&mut self.out, &name, "counter", help);
        write_sample(&mut self.out, &name, &self.labels, value as f64);
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.histogram_up_to(f64::INFINITY, name, help, histogram);
    }

    fn histogram_up_to(&mut self, most: f64, name: &str, help: &str, histogram: &Histogram) {
        let name = format!("vllm:{name}");
        write_header(&mut self.out, &name, "histogram", help);
        histogram.write_up_to(most, &mut self.out, &name, &self.labels);
    }

    fn labelled(&mut self, name: &str, more: &str, value: f64) {
        let labels = format!("{},{more}", self.labels);
        write_sample(&mut self.out, name, &labels, value);
    }
}

fn drafts_part(page: &mut Page, drafts: &DraftCounts, places: u32) {
    page.counter("spec_decode_num_drafts", "Number of spec decoding drafts.", drafts.drafts);
    page.counter("spec_decode_num_draft_tokens", "Number of draft tokens.", drafts.tokens);
    page.counter("spec_decode_num_accepted_tokens", "Number of accepted tokens.", drafts.accepted);
    let name = "vllm:spec_decode_num_accepted_tokens_per_pos_total";
    write_header(&mut page.out, name, "counter", "Accepted tokens per draft position.");
    for (position, accepted) in drafts.accepted_at.iter().enumerate().take(places as usize) {
        page.labelled(name, &format!("position=\"{position}\""), *accepted as f64);
    }
}

/// `process_*` as prometheus_client reports them; left out where /proc is not.
fn process_part(out: &mut String) {
    if let Ok(statm) = std::fs::read_to_string("/proc/self/statm") {
        let pages: Vec<u64> = statm.split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect();
        if let [virtual_pages, resident, ..] = pages[..] {
            let name = "process_virtual_memory_bytes";
            write_header(out, name, "gauge", "Virtual memory size in bytes.");
            write_sample(out, name, "", (virtual_pages * PAGE_BYTES) as f64);
            let name = "process_resident_memory_bytes";
            write_header(out, name, "gauge", "Resident memory size in bytes.");
            write_sample(out, name, "", (resident * PAGE_BYTES) as f64);
        }
    }
    if let Ok(stat) = std::fs::read_to_string("/proc/self/stat")
        && let Some((_, rest)) = stat.rsplit_once(')')
    {
        let ticks: u64 =
            rest.split_ascii_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
        let name = "process_cpu_seconds_total";
        write_header(out, name, "counter", "Total user and system CPU time spent in seconds.");
        write_sample(out, name, "", ticks as f64 / TICKS_PER_S);
        // Field 22 of the file: ticks from the machine's start to the process's.
        let since_boot: Option<f64> = rest.split_ascii_whitespace().nth(19).and_then(|n| n.parse().ok());
        if let (Some(ticks), Some(boot_s)) = (since_boot, boot_time_s()) {
            let name = "process_start_time_seconds";
            write_header(out, name, "gauge", "Start time of the process since unix epoch in seconds.");
            write_sample(out, name, "", boot_s + ticks / TICKS_PER_S);
        }
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        let name = "process_open_fds";
        write_header(out, name, "gauge", "Number of open file descriptors.");
        write_sample(out, name, "", open.count() as f64);
    }
    if let Some(most) = max_open_files() {
        let name = "process_max_fds";
        write_header(out, name, "gauge", "Maximum number of open file descriptors.");
        write_sample(out, name, "", most);
    }
}

/// Unix time of the machine's start.
fn boot_time_s() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
}

fn max_open_files() -> Option<f64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// Linux on the machines we build for.
const PAGE_BYTES: u64 = 4096;
const TICKS_PER_S: f64 = 100.0;
