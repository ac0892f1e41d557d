//! KV cache, memory, scheduler.

use super::{ANY, POSITIVE};
use crate::cli::choices::{Choice, SchedulingPolicy};
use crate::cli::flag::{Flag, Group, Kind};

const OFFLOAD: &str = "keeping weights in host memory is not in this version";
const STATE: &str = "models with a recurrent state are not in this version";
const TOKENS: &str = "a count of tokens";
const FP8_KV: &str = "8-bit and smaller KV caches are not in this version; use auto, float16 or bfloat16";

/// Element types of the KV cache.
const KV_DTYPES: &[&str] = &["auto", "float32", "float16", "bfloat16"];

/// KV pages and the memory for them.
pub const CACHE: Group = Group {
    name: "CacheConfig",
    about: "KV pages and the memory for them",
    flags: &[
        Flag::new("kv-cache-memory-bytes", Kind::Bytes, "Size of the KV cache on each device")
            .unset("from free memory")
            .common(),
        Flag::new(
            "gpu-memory-utilization",
            Kind::FloatAbove { min: 0.0, max: 1.0 },
            "Share of a GPU's memory to use; without effect on the CPU",
        )
        .alias(&["--device-memory-utilization"])
        .unset("0.92")
        .common(),
        Flag::choice("kv-cache-dtype", KV_DTYPES, "Number format of the KV cache; auto: that of activations")
            .default("auto")
            .rename_values(&[("half", "float16"), ("bf16", "bfloat16"), ("float", "float32")])
            .refuse_values(&[(
                &[
                    "fp8",
                    "fp8_e4m3",
                    "fp8_e5m2",
                    "fp8_inc",
                    "fp8_ds_mla",
                    "nvfp4",
                    "nvfp4_4over6",
                    "nvfp4_ds_mla",
                    "int8",
                    "int4_per_token_head",
                    "int8_per_token_head",
                    "fp8_per_token_head",
                    "turboquant_k8v4",
                    "turboquant_4bit_nc",
                    "turboquant_k3v4_nc",
                    "turboquant_3bit_nc",
                    "octave_k3v4",
                    "octave_k3v3",
                    "octave_k3v3_compact",
                    "ultraquant_4bit",
                ],
                FP8_KV,
            )]),
        Flag::list("kv-cache-dtype-skip-layers", "Layers whose KV cache stays wide")
            .note("every layer's KV cache has the same format"),
        Flag::int("block-size", 1, 4096, "Tokens in one KV page").unset("the backend's"),
        Flag::count("num-gpu-blocks-override", "a count of pages", POSITIVE, ANY, "Exact number of KV pages")
            .unset("from free memory"),
        Flag::new("enable-prefix-caching", Kind::Bool, "Share the KV pages of equal prompt beginnings")
            .unset("on where the model allows")
            .common(),
        Flag::text("prefix-caching-hash-algo", "Hash of prefix-cache keys")
            .default("sha256")
            .note("Pallium's prefix cache has one hash"),
        Flag::switch("kv-sharing-fast-prefill", "Skip prefill in layers that share KV")
            .note("no model here shares KV between layers"),
        Flag::text("mamba-cache-dtype", "Number format of recurrent state").default("auto").note(STATE),
        Flag::text("mamba-ssm-cache-dtype", "Number format of SSM state").default("auto").note(STATE),
        Flag::count("mamba-block-size", TOKENS, POSITIVE, ANY, "Tokens in one state page").note(STATE),
        Flag::text("mamba-cache-mode", "How recurrent state is cached").default("auto").note(STATE),
        Flag::switch("enable-mamba-shared-prefix-checkpoint", "Share state of equal prefixes").note(STATE),
        Flag::count("replayssm-buffer-len", TOKENS, 0, ANY, "Tokens replayed into SSM state")
            .default("16")
            .note(STATE),
        Flag::switch("use-replayssm", "Replay tokens into SSM state").note(STATE),
        Flag::text("mamba-backend", "Kernels of recurrent layers").default("triton").note(STATE),
        Flag::text("mamba-ssu-algorithm", "Algorithm of the state update").note(STATE),
        Flag::switch("enable-mamba-cache-stochastic-rounding", "Round state at random").note(STATE),
        Flag::int("mamba-cache-philox-rounds", 0, 100, "Rounds of the rounding's generator")
            .default("0")
            .note(STATE),
        Flag::float("kv-offloading-size", 0.0, f64::INFINITY, "GiB of host memory for KV pages")
            .unset("0")
            .neutral(&["0"], "a KV cache in host memory is not in this version"),
        Flag::text("kv-offloading-backend", "How KV pages go to host memory")
            .default("native")
            .note("a KV cache in host memory is not in this version"),
    ],
};

/// Weights kept in host memory.
pub const OFFLOADING: Group = Group {
    name: "OffloadConfig",
    about: "Weights kept in host memory",
    flags: &[
        Flag::float("cpu-offload-gb", 0.0, f64::INFINITY, "GiB of weights kept in host memory")
            .default("0")
            .neutral(&["0"], OFFLOAD),
        Flag::list("cpu-offload-params", "Weights kept in host memory").note(OFFLOAD),
        Flag::text("offload-backend", "How weights reach the device").default("auto").note(OFFLOAD),
        Flag::int("offload-group-size", 0, 1 << 20, "Layers in a group")
            .default("0")
            .neutral(&["0"], OFFLOAD),
        Flag::int("offload-num-in-group", 1, 1 << 20, "Layers of a group in host memory")
            .default("1")
            .note(OFFLOAD),
        Flag::int("offload-prefetch-step", 0, 1 << 20, "Layers fetched ahead").default("1").note(OFFLOAD),
        Flag::list("offload-params", "Weights of a group in host memory").note(OFFLOAD),
    ],
};

/// Which requests run in a step.
pub const SCHEDULER: Group = Group {
    name: "SchedulerConfig",
    about: "Which requests run in a step",
    flags: &[
        Flag::count(
            "max-num-seqs",
            "a count of requests",
            1,
            engine_core::limits::MAX_NUM_SEQS as i128,
            "Most requests that run at once",
        )
        .unset("by device")
        .common(),
        Flag::count(
            "max-num-batched-tokens",
            TOKENS,
            1,
            engine_core::limits::MAX_NUM_BATCHED_TOKENS as i128,
            "Most tokens in one step",
        )
        .unset("by device")
        .common(),
        Flag::count(
            "max-num-queued-reqs",
            "a count of requests",
            1,
            engine_core::limits::MAX_QUEUED_REQUESTS as i128,
            "Requests that may wait; beyond it the answer is 503 at once",
        )
        .unset("65536"),
        Flag::count(
            "max-num-queued-tokens",
            TOKENS,
            1,
            ANY,
            "Prompt tokens that may wait; beyond it the answer is 503 at once",
        )
        .unset("no bound"),
        Flag::choice("scheduling-policy", SchedulingPolicy::NAMES, "Who runs first").default("fcfs"),
        Flag::new("enable-chunked-prefill", Kind::Bool, "Mix parts of prompts with running requests")
            .unset("on"),
        Flag::count("max-num-scheduled-tokens", TOKENS, 1, ANY, "Most tokens scheduled in one step")
            .note("--max-num-batched-tokens is the budget"),
        Flag::count("max-num-active-seqs", "a count of requests", 1, ANY, "Most requests with KV pages")
            .note("--max-num-seqs is the bound"),
        Flag::count(
            "long-prefill-token-threshold",
            TOKENS,
            0,
            engine_core::limits::MAX_NUM_BATCHED_TOKENS as i128,
            "Most prompt tokens of one request a step; 0: no bound but the step's",
        )
        .default("0"),
        Flag::switch("long-prefill-token-threshold-adaptive", "Adapt that threshold")
            .note("the step's budget bounds each prompt's share"),
        Flag::new("async-scheduling", Kind::Bool, "Prepare the next step while one runs").unset("on"),
        Flag::switch("disable-hybrid-kv-cache-manager", "One page size for all layers")
            .note("pages of all layers have one size in bytes"),
        Flag::switch("disable-chunked-mm-input", "Never split a multimodal item")
            .note("multimodal models are not in this version"),
        Flag::new("scheduler-reserve-full-isl", Kind::Bool, "Admit a request only when its prompt fits")
            .default("true")
            .note("Pallium has its own rule of admission"),
        Flag::float("watermark", 0.0, 1.0, "Share of KV pages kept free at admission")
            .default("0")
            .note("Pallium has its own rule of admission"),
        Flag::int("prefill-schedule-interval", 1, 1 << 20, "Steps between admissions")
            .default("1")
            .note("Pallium has its own rule of admission"),
    ],
};
