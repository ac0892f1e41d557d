//! Speculation, graphs and kernels, LoRA, multimodal input, structured output, disaggregation.

use engine_core::limits::MAX_SPECULATIVE_TOKENS;

use super::ANY;
use crate::cli::flag::{Flag, Group, Kind};

const KERNELS: &str = "Pallium picks its kernels itself";
const LORA: &str = "LoRA adapters are not in this version";
const MEDIA: &str = "multimodal models are not in this version";
const GRAMMAR: &str = "Pallium has one grammar engine and picks it itself";
const DISAGGREGATION: &str = "prefill and decode on separate servers are not in this version";
const SPECIAL: &str = "nothing in this version reads it";

/// Draft tokens.
pub const SPECULATIVE: Group = Group {
    name: "SpeculativeConfig",
    about: "Tokens drafted ahead and verified",
    flags: &[
        Flag::json(
            "speculative-config",
            "method (ngram, draft_model), num_speculative_tokens, disable_by_batch_size; for ngram prompt_lookup_min and \
             prompt_lookup_max; for a draft model: model, revision, quantization, max_model_len",
        )
        .alias(&["-sc"])
        .unset("none"),
        Flag::text("spec-method", "As --speculative-config.method").unset("none"),
        Flag::text("spec-model", "As --speculative-config.model").unset("none"),
        Flag::int(
            "spec-tokens",
            1,
            MAX_SPECULATIVE_TOKENS as i128,
            "As --speculative-config.num_speculative_tokens",
        )
        .unset("none"),
    ],
};

/// Graphs and kernels.
pub const COMPILATION: Group = Group {
    name: "CompilationConfig",
    about: "Captured graphs and choice of kernels",
    flags: &[
        Flag::list("cudagraph-capture-sizes", "Row counts to capture graphs for").unset("the runner's"),
        Flag::int("max-cudagraph-capture-size", 1, 1 << 20, "Largest row count to capture a graph for")
            .unset("the runner's"),
        Flag::json("compilation-config", "cudagraph_mode NONE and cudagraph_capture_sizes are read from it")
            .alias(&["-cc"])
            .default("{}"),
        Flag::int("optimization-level", 0, 3, "0 captures no graphs; 1 to 3 are the same")
            .alias(&["-O"])
            .default("2"),
        Flag::text("performance-mode", "Preset of an engine's trade-offs").default("balanced").note(KERNELS),
        Flag::text("attention-backend", "Name of an attention kernel").unset("auto").note(KERNELS),
        Flag::json("attention-config", "Options of attention kernels").alias(&["-ac"]).note(KERNELS),
        Flag::text("moe-backend", "Name of an expert kernel").default("auto").note(KERNELS),
        Flag::text("linear-backend", "Name of a GEMM kernel").default("auto").note(KERNELS),
        Flag::json("ir-op-priority", "Order of kernels by op").note(KERNELS),
        Flag::new("enable-flashinfer-autotune", Kind::Bool, "Time kernels at start").note(KERNELS),
        Flag::switch("monokernel", "One kernel for a whole layer").note(KERNELS),
        Flag::text("gdn-prefill-backend", "Name of a gated-delta kernel").note(KERNELS),
        Flag::text("kda-prefill-backend", "Name of a delta-attention kernel").note(KERNELS),
        Flag::text("kda-decode-backend", "Name of a delta-attention kernel").note(KERNELS),
        Flag::text("sparse-indexer-topk-backend", "Name of a top-k kernel").default("auto").note(KERNELS),
        Flag::json("kernel-config", "Options of kernels").note(KERNELS),
    ],
};

/// Adapters.
pub const ADAPTERS: Group = Group {
    name: "LoRAConfig",
    about: "LoRA adapters",
    flags: &[
        Flag::switch("enable-lora", "Serve LoRA adapters").later(LORA),
        Flag::list("lora-modules", "Adapters as name=path or JSON").unset("none").neutral(&["[]"], LORA),
        Flag::int("max-loras", 1, 65_536, "Adapters in one step").default("1").note(LORA),
        Flag::int("max-lora-rank", 1, 65_536, "Largest rank of an adapter").default("16").note(LORA),
        Flag::int("max-cpu-loras", 1, 1 << 20, "Adapters kept in host memory").note(LORA),
        Flag::text("lora-dtype", "Number format of adapters").default("auto").note(LORA),
        Flag::list("lora-target-modules", "Layers that adapters may change").note(LORA),
        Flag::switch("fully-sharded-loras", "Shard adapters wholly").note(LORA),
        Flag::json("default-mm-loras", "Adapter of each modality").note(LORA),
        Flag::switch("enable-tower-connector-lora", "Adapters of vision towers").note(LORA),
        Flag::switch("specialize-active-lora", "Kernels by number of active adapters").note(LORA),
        Flag::switch("enable-mixed-moe-lora-format", "Adapters of experts in several formats").note(LORA),
        Flag::switch("enable-moe-shared-loras", "Adapters shared by experts").note(LORA),
        Flag::int("max-lora-cls-labels", 0, 1 << 20, "Labels of classification adapters").note(LORA),
    ],
};

/// Images, audio, video.
pub const MULTIMODAL: Group = Group {
    name: "MultiModalConfig",
    about: "Images, audio and video in prompts",
    flags: &[
        Flag::switch("language-model-only", "Leave the vision tower out").note(MEDIA),
        Flag::json("limit-mm-per-prompt", "Most items of each kind in one prompt").note(MEDIA),
        Flag::json("media-io-kwargs", "Options of media decoders").default("{}").note(MEDIA),
        Flag::json("mm-processor-kwargs", "Options of the processor").note(MEDIA),
        Flag::float("mm-processor-cache-gb", 0.0, f64::INFINITY, "GiB of processed items kept")
            .default("4")
            .note(MEDIA),
        Flag::text("mm-processor-cache-type", "Kind of that cache").default("lru").note(MEDIA),
        Flag::text("mm-hasher-algorithm", "Hash of items").default("blake3").note(MEDIA),
        Flag::int("mm-shm-cache-max-object-size-mb", 1, 1 << 20, "Largest shared item in MB")
            .default("128")
            .note(MEDIA),
        Flag::switch("enable-mm-embeds", "Accept embeddings of media").later(MEDIA),
        Flag::switch("mm-encoder-only", "Run the encoder only").later(MEDIA),
        Flag::text("mm-encoder-tp-mode", "How the encoder is split").default("weights").note(MEDIA),
        Flag::text("mm-encoder-attn-backend", "Name of an attention kernel").note(MEDIA),
        Flag::text("mm-encoder-attn-dtype", "Number format of encoder attention").note(MEDIA),
        Flag::path("mm-encoder-fp8-scale-path", "Scales of an FP8 encoder").note(MEDIA),
        Flag::path("mm-encoder-fp8-scale-save-path", "Where to write such scales").note(MEDIA),
        Flag::float("mm-encoder-fp8-scale-save-margin", 0.0, f64::INFINITY, "Margin of such scales")
            .default("1.5")
            .note(MEDIA),
        Flag::switch("interleave-mm-strings", "Keep the place of media in the text").note(MEDIA),
        Flag::switch("skip-mm-profiling", "Do not measure the encoder's memory").note(MEDIA),
        Flag::float("video-pruning-rate", 0.0, 1.0, "Share of video tokens dropped").note(MEDIA),
        Flag::text("video-pruning-method", "Which video tokens are dropped").default("evs").note(MEDIA),
        Flag::text("mm-tensor-ipc", "How items reach workers").default("direct_rpc").note(MEDIA),
        Flag::text("mm-processor-device", "Where items are processed").default("auto").note(MEDIA),
        Flag::float("mm-ipc-gpu-memory-gb", 0.0, f64::INFINITY, "GiB for items on the device")
            .default("0")
            .note(MEDIA),
        Flag::text("mm-device-do-normalize", "Normalise images on the device").default("auto").note(MEDIA),
    ],
};

/// Grammars, reasoning and tools.
pub const STRUCTURED: Group = Group {
    name: "StructuredOutputsConfig",
    about: "Grammars, reasoning and tool calls",
    flags: &[
        Flag::json("structured-outputs-config", "Grammar engine and its options").default("{}").note(GRAMMAR),
        Flag::text("reasoning-parser", "How reasoning is told from the answer")
            .unset("none")
            .neutral(&[""], "parsing of reasoning is not in this version"),
        Flag::json("reasoning-config", "Options of reasoning")
            .unset("none")
            .later("parsing of reasoning is not in this version"),
        Flag::switch("enable-auto-tool-choice", "Let the model choose tools")
            .later("parsing of tool calls is not in this version"),
        Flag::text("tool-call-parser", "How tool calls are read from the answer")
            .unset("none")
            .later("parsing of tool calls is not in this version"),
        Flag::text("tool-strict-level", "How strictly tool calls follow their schema")
            .unset("the parser's")
            .note("parsing of tool calls is not in this version"),
        Flag::json("reasoning-effort-map", "Reasoning efforts as the template names them")
            .unset("none")
            .later("reasoning efforts are not in this version"),
    ],
};

/// Special cases that vLLM has one JSON flag each for.
pub const SPECIAL_CASES: Group = Group {
    name: "VllmConfig",
    about: "Disaggregation, statistics and special cases",
    flags: &[
        Flag::json("kv-transfer-config", "KV pages from and to other servers")
            .unset("none")
            .later(DISAGGREGATION),
        Flag::json("kv-events-config", "Events about KV pages")
            .unset("none")
            .later("KV events are not in this version"),
        Flag::json("ec-transfer-config", "Encoder outputs from and to other servers")
            .unset("none")
            .later(DISAGGREGATION),
        Flag::json("ec-manager-config", "Cache of encoder outputs").note(SPECIAL),
        Flag::json("diffusion-config", "Diffusion language models")
            .unset("none")
            .later("diffusion language models are not in this version"),
        Flag::json("watermark-config", "Watermarks in the text")
            .unset("none")
            .later("watermarks are not in this version"),
        Flag::json("engram-config", "Memory layers").note(SPECIAL),
        Flag::json("additional-config", "Options of platforms").default("{}").note(SPECIAL),
        Flag::json("aux-output-config", "Further outputs").note(SPECIAL),
        Flag::json("weight-transfer-config", "Weights from a trainer")
            .unset("none")
            .later("weights from a trainer are not in this version"),
        Flag::switch("disable-log-stats", "Log no statistics while running"),
        Flag::switch("aggregate-engine-logging", "One statistics line for all engines")
            .note("there is one engine"),
        Flag::json("watchdog-config", "Limits of the watchdog").note("/health has a watchdog of its own"),
        Flag::json("profiler-config", "Profiler of steps").note("Pallium has no torch profiler"),
        Flag::switch("fail-on-environ-validation", "Refuse unknown environment variables")
            .note("no environment variable but the PALLIUM_ twins and the hub's own is read"),
        Flag::count("api-server-count", "a count of processes", 0, ANY, "Processes that serve HTTP")
            .alias(&["-asc"])
            .unset("1")
            .note("one process serves HTTP on all cores"),
    ],
};
