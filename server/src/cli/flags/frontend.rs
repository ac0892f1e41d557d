//! HTTP, chat templates, logging, the device: what the program does around the engine.

use super::{ANY, POSITIVE};
use crate::cli::choices::{Choice, ContentFormat, LogFormat, LogLevel};
use crate::cli::flag::{Flag, Group, Kind};

const TLS: &str = "TLS is not in this version; put a proxy in front, which --uds serves well";
const DOCS: &str = "there are no docs pages but /openapi.json";
const TRACES: &str = "OpenTelemetry traces are not in this version";
const METRICS: &str = "/metrics has one set of metrics";
const SERVING: &str = "this endpoint is not in this version";

/// Where the server listens and who may ask.
pub const HTTP: Group = Group {
    name: "Frontend",
    about: "Where the server listens, who may ask, and what HTTP answers carry",
    flags: &[
        Flag::text("host", "Address to listen on").unset("all").common(),
        Flag::int("port", 0, 65_535, "Port to listen on; 0 takes a free one").default("8000").common(),
        Flag::path("uds", "Unix socket to listen on in place of host and port"),
        Flag::list("api-key", "Keys, any of which a request must bear").unset("none").common(),
        Flag::count(
            "max-num-seqs-per-key",
            "a count of sequences",
            POSITIVE,
            1 << 20,
            "Sequences of one API key in work at once; beyond it the answer is 429 at once",
        )
        .unset("no bound"),
        Flag::text("root-path", "Path prefix behind a proxy").unset("none"),
        Flag::list("allowed-origins", "CORS: origins that browsers may ask from").default("[]"),
        Flag::list("allowed-methods", "CORS: methods").default("[\"*\"]"),
        Flag::list("allowed-headers", "CORS: headers").default("[\"*\"]"),
        Flag::switch("allow-credentials", "CORS: cookies and keys"),
        Flag::path("ssl-keyfile", "TLS: private key").later(TLS),
        Flag::path("ssl-certfile", "TLS: certificate").later(TLS),
        Flag::path("ssl-ca-certs", "TLS: authorities of client certificates").later(TLS),
        Flag::int("ssl-cert-reqs", 0, 2, "TLS: whether clients need a certificate")
            .default("0")
            .neutral(&["0"], TLS),
        Flag::text("ssl-ciphers", "TLS: ciphers").later(TLS),
        Flag::switch("enable-ssl-refresh", "TLS: read the certificate anew when it changes").later(TLS),
        Flag::switch("enable-request-id-headers", "Echo X-Request-Id"),
        Flag::new("stream-interval", Kind::Int { min: 1, max: 1 << 20 }, "Tokens in one streamed chunk")
            .default("1"),
        Flag::float(
            "sse-keep-alive-interval",
            0.0,
            f64::INFINITY,
            "Seconds between comments on a silent stream",
        )
        .default("0"),
        Flag::float("shutdown-timeout", 0.0, 1e9, "Seconds that streams may still run after SIGTERM")
            .default("0"),
        Flag::switch("disable-fastapi-docs", "Serve no /openapi.json"),
        Flag::switch("enable-offline-docs", "Docs pages without the network").note(DOCS),
        Flag::new("h11-max-incomplete-event-size", Kind::Bytes, "Largest head of an HTTP request")
            .unset("4 MiB")
            .note("HTTP heads have bounds of their own"),
        Flag::count("h11-max-header-count", "a count of headers", POSITIVE, ANY, "Most headers of a request")
            .default("256")
            .note("HTTP heads have bounds of their own"),
        Flag::switch("log-error-stack", "Log the stack of errors").note("errors carry their cause in words"),
        Flag::text("fingerprint-mode", "What system_fingerprint shows")
            .default("full")
            .note("system_fingerprint is the version"),
        Flag::text("fingerprint-value", "A system_fingerprint of one's own")
            .note("system_fingerprint is the version"),
        Flag::switch("enable-server-load-tracking", "Count requests in work for /load"),
        Flag::switch("enable-tokenizer-info-endpoint", "Serve /tokenizer_info").later(SERVING),
        Flag::switch("enable-scale-out", "Serve render and generate endpoints").later(SERVING),
        Flag::switch("tokens-only", "Serve token ids only")
            .later("a server of token ids only is not in this version"),
        Flag::new("enable-flash-late-interaction", Kind::Bool, "Late interaction on the GPU")
            .default("true")
            .note("pooling models are not in this version"),
        Flag::switch("headless", "Run an engine without HTTP")
            .later("serving across machines is not in this version"),
        Flag::switch("grpc", "Serve gRPC in place of HTTP").later("gRPC is not in this version"),
        Flag::int("grpc-port", 0, 65_535, "Serve gRPC beside HTTP").later("gRPC is not in this version"),
        Flag::path("config", "YAML file of flags; the environment and the command line win over it").common(),
    ],
};

/// What chat and completion answers look like.
pub const CHAT_FORMAT: Group = Group {
    name: "BaseFrontend",
    about: "Chat templates and what answers carry",
    flags: &[
        Flag::text("chat-template", "File of a Jinja template, or the template itself")
            .unset("the tokenizer's"),
        Flag::choice("chat-template-content-format", ContentFormat::NAMES, "Shape of content in templates")
            .default("auto"),
        Flag::json("default-chat-template-kwargs", "Arguments of the template under those of a request")
            .unset("none"),
        Flag::switch("trust-request-chat-template", "Let a request bring its own template"),
        Flag::switch("trust-request-mm-kwargs", "Let a request set options of media")
            .note("multimodal models are not in this version"),
        Flag::text("response-role", "Role of the answer").default("assistant"),
        Flag::switch("return-tokens-as-token-ids", "Show tokens as token_id:N in log-probabilities"),
        Flag::switch("enable-prompt-tokens-details", "Report cached prompt tokens in usage"),
        Flag::switch("enable-force-include-usage", "Report usage on every stream"),
        Flag::switch("enable-per-request-metrics", "Report its timings in the answer to one prompt"),
        Flag::switch(
            "exclude-tools-when-tool-choice-none",
            "Hide tools from the prompt when none may be called",
        ),
    ],
};

/// What is written to the log, by any command.
pub const LOGGING: Group = Group {
    name: "LoggingConfig",
    about: "What is logged",
    flags: &[
        Flag::choice("log-level", LogLevel::NAMES, "Least level that is logged")
            .default("info")
            .rename_values(&[("warn", "warning"), ("notset", "trace")])
            .common(),
        Flag::choice("log-format", LogFormat::NAMES, "Shape of log lines").default("text").common(),
        Flag::text("logging-config", "Python logging configuration")
            .note("Python's logging configuration is not read; see --log-level and --log-format"),
    ],
};

/// What the server logs and measures.
pub const OBSERVABILITY: Group = Group {
    name: "ObservabilityConfig",
    about: "Logs of requests, metrics and traces",
    flags: &[
        Flag::switch("enable-log-requests", "Log each request with its parameters"),
        Flag::count("max-log-len", "a count of characters", 0, ANY, "Most prompt characters in such a line")
            .unset("all"),
        Flag::switch("enable-log-outputs", "Log each answer")
            .later("logging of answers is not in this version"),
        Flag::new("enable-log-deltas", Kind::Bool, "Log each part of a streamed answer")
            .default("true")
            .note("logging of answers is not in this version"),
        Flag::switch("disable-uvicorn-access-log", "Log no HTTP requests"),
        Flag::list("disable-access-log-for-endpoints", "Paths whose HTTP requests are not logged")
            .unset("none"),
        Flag::text("uvicorn-log-level", "Level of the HTTP server's log")
            .default("info")
            .note("--log-level holds for the whole program"),
        Flag::path("log-config-file", "Python logging configuration of the HTTP server")
            .note("Python's logging configuration is not read; see --log-level and --log-format"),
        Flag::text("otlp-traces-endpoint", "Where OpenTelemetry traces go").later(TRACES),
        Flag::list("collect-detailed-traces", "Parts that are traced in detail").note(TRACES),
        Flag::text("show-hidden-metrics-for-version", "Show metrics that a version hid").note(METRICS),
        Flag::text("per-request-spec-decode-metrics", "Draft statistics of each request")
            .default("none")
            .note(METRICS),
        Flag::switch("kv-cache-metrics", "Metrics of how long pages live").note(METRICS),
        Flag::float("kv-cache-metrics-sample", 0.0, 1.0, "Share of pages measured")
            .default("0.01")
            .note(METRICS),
        Flag::json("custom-histogram-buckets", "Buckets of histograms").note(METRICS),
        Flag::switch("cudagraph-metrics", "Metrics of graphs").note(METRICS),
        Flag::switch("enable-mfu-metrics", "Metrics of device utilisation").note(METRICS),
        Flag::switch("enable-logging-iteration-details", "Log each step").note(METRICS),
        Flag::switch("enable-layerwise-nvtx-tracing", "Mark layers for a profiler").note(METRICS),
        Flag::text("jit-monitor-mode", "What to do about compilation while running")
            .default("warn")
            .note("nothing is compiled while running"),
        Flag::switch("jit-monitor-verbose", "Log compilation while running")
            .note("nothing is compiled while running"),
    ],
};

/// Pallium's own flags about the device.
pub const DEVICE: Group = Group {
    name: "Device",
    about: "Which device runs the model, and how",
    flags: &[
        Flag::new(
            "device",
            Kind::Device,
            "What runs the model; cuda:1 picks the second one; null computes nothing (for load tests: answers are noise), null:10 nothing in 10 ms a step",
        )
            .default("auto")
            .rename_values(&[("gpu", "auto"), ("hip", "rocm"), ("vulkan", "wgpu"), ("metal", "wgpu")])
            .refuse_values(&[(
                &["neuron", "tpu", "xpu", "hpu", "npu", "openvino"],
                "no backend here runs on it; use wgpu for a device with Vulkan, Metal or DX12, else cpu",
            )])
            .common(),
        Flag::count("threads", "a count of threads", 1, 4096, "CPU threads that compute")
            .unset("the cores this process may use")
            .common(),
        Flag::choice("numa", &["auto", "off"], "Spread weights over memory nodes")
            .default("auto")
            .neutral(&["auto", "off"], "spreading weights over memory nodes is not in this version"),
        Flag::switch(
            "batch-invariant",
            "Make answers independent of neighbours, to the bit; always so on the CPU",
        ),
        Flag::switch(
            "allow-host-fallback",
            "Run ops the device lacks on the CPU, slowly; for trying a backend",
        ),
    ],
};
