//! Which model, and how its files are read.

use super::{ANY, POSITIVE};
use crate::cli::choices::{Choice, DtypeName, LoadFormat, LogprobsMode};
use crate::cli::flag::{Flag, Group};

const MULTIMODAL: &str = "multimodal models are not in this version";
const QUANTIZED: &str = "--quantization has no further options in this version";
const SLEEP: &str = "sleep mode is not in this version";
const POOLING: &str = "pooling models are not in this version";
/// Methods that engines have dropped, with what reads such a checkpoint today.
const REMOVED_METHODS: &[(&[&str], &str)] = &[
    (
        &["aqlm"],
        "Hugging Face transformers with the aqlm package reads it; here, a GGUF file of the same model",
    ),
    (
        &["hqq"],
        "Hugging Face transformers with the hqq package reads it; here, a GPTQ or GGUF one of the model",
    ),
    (&["deepspeedfp"], "DeepSpeed reads it; here, the plain checkpoint with --quantization fp8"),
    (
        &["marlin", "gptq_marlin_24"],
        "only the releases of vLLM that had it read this layout; here, a GPTQ checkpoint of the same model",
    ),
    (&["qqq", "bitblas"], "GPTQModel reads it; here, a GPTQ checkpoint of the same model"),
    (&["ipex"], "it read GPTQ and AWQ checkpoints, which are read here without the flag"),
    (&["tpu_int8"], "it quantized at load, which --quantization int8 does here"),
];

/// The model and how its text and numbers are treated.
pub const MODEL: Group = Group {
    name: "ModelConfig",
    about: "Which model, its tokenizer, its number format and its limits",
    flags: &[
        Flag::text(
            "model",
            "Directory or Hugging Face id of the model; also the first word after the command",
        )
        .unset("the bundled model")
        .alias(&["--model-tag"])
        .common(),
        Flag::list("served-model-name", "Names that the API answers to; the first is reported")
            .unset("the model as given")
            .common(),
        Flag::text("tokenizer", "Directory or Hugging Face id of the tokenizer").unset("the model's"),
        Flag::text("tokenizer-revision", "Hub revision of the tokenizer").unset("that of the model"),
        Flag::text("tokenizer-mode", "How the tokenizer is read")
            .default("auto")
            .neutral(&["auto", "hf", "fast"], "the tokenizer's own files say how it is read"),
        Flag::text("revision", "Hub branch, tag or commit of the model").unset("main"),
        Flag::text("code-revision", "Hub revision of the model's code")
            .note("no code from a model's repository is ever run"),
        Flag::text("hf-token", "Token for the hub; without a value, the one the hub's tools stored")
            .unset("HF_TOKEN")
            .bare(""),
        Flag::text("hf-config-path", "Directory or hub id of the config.json to use").unset("the model's"),
        Flag::json("hf-overrides", "Keys that replace those of config.json").default("{}"),
        Flag::text("config-format", "Format of the model's configuration")
            .default("auto")
            .neutral(&["auto", "hf"], "only Hugging Face's config.json is read"),
        Flag::switch("trust-remote-code", "Run Python code from the model's repository")
            .note("no code from a model's repository is ever run; models are built in"),
        Flag::choice("dtype", DtypeName::NAMES, "Number format of weights and activations")
            .default("auto")
            .rename_values(&[("half", "float16"), ("float", "float32"), ("bf16", "bfloat16")])
            .common(),
        Flag::new(
            "max-model-len",
            crate::cli::flag::Kind::HumanOrAuto {
                max: engine_core::limits::MAX_MODEL_LEN as i128,
                what: "a count of tokens",
            },
            "Longest context, prompt and answer together; auto takes what fits in memory",
        )
        .unset("from config.json")
        .common(),
        Flag::text("quantization", "Method of quantized weights")
            .alias(&["-q"])
            .unset("from the checkpoint")
            .refuse_values(REMOVED_METHODS),
        Flag::json("quantization-config", "How to quantize at load").unset("none").later(QUANTIZED),
        Flag::switch("allow-deprecated-quantization", "Accept deprecated methods")
            .note("no method here is deprecated"),
        Flag::int("seed", 0, u64::MAX as i128, "Seed of requests without one, and of dummy weights")
            .default("0"),
        Flag::text("runner", "What the model does").default("auto").neutral(&["auto", "generate"], POOLING),
        Flag::text("convert", "Turn a generating model into a pooling one")
            .default("auto")
            .neutral(&["auto", "none"], POOLING),
        Flag::json("pooler-config", "How a pooling model pools").unset("none").later(POOLING),
        Flag::switch("enforce-eager", "Capture no graphs: run each step op by op"),
        Flag::int("max-logprobs", -1, 10_000_000, "Most log-probabilities a request may ask for; -1: all")
            .default("20"),
        Flag::choice("logprobs-mode", LogprobsMode::NAMES, "What log-probabilities are taken from")
            .default("raw_logprobs")
            .refuse_values(&[(
                &["raw_logits", "processed_logprobs", "processed_logits"],
                "log-probabilities are of the model's own distribution (raw_logprobs) in this version",
            )]),
        Flag::text(
            "generation-config",
            "Sampling defaults: auto (the model's), vllm (neutral) or a directory",
        )
        .default("auto"),
        Flag::json("override-generation-config", "Sampling defaults over those of the generation config")
            .default("{}"),
        Flag::switch("skip-tokenizer-init", "Serve token ids only")
            .later("a server without a tokenizer is not in this version"),
        Flag::switch("enable-prompt-embeds", "Accept embeddings in place of prompts")
            .later("prompts of embeddings are not in this version"),
        Flag::switch("disable-sliding-window", "Cap the context at the window")
            .note("sliding windows are computed as the model asks"),
        Flag::switch("disable-cascade-attn", "Do not use cascade attention")
            .note("Pallium picks its attention kernels itself"),
        Flag::text("model-impl", "Implementation of the model")
            .default("auto")
            .note("each model has one implementation here"),
        Flag::switch("enable-sleep-mode", "Allow /sleep and /wake_up").later(SLEEP),
        Flag::text("sleep-mode-backend", "How memory is given back in sleep").default("cumem").note(SLEEP),
        Flag::switch("sleep-mode-offload-cudagraph", "Drop graphs in sleep").note(SLEEP),
        Flag::list("sleep-preserve-parameter-names", "Weights kept in sleep").note(SLEEP),
        Flag::switch("enable-cumem-allocator", "Use CUDA's virtual memory allocator")
            .note("Pallium has its own arena"),
        Flag::switch("enable-nccl-comm-suspend", "Give NCCL's memory back in sleep").note(SLEEP),
        Flag::text("allowed-local-media-path", "Directory that requests may read media from")
            .unset("none")
            .neutral(&[""], MULTIMODAL),
        Flag::list("allowed-media-domains", "Hosts that requests may load media from")
            .unset("none")
            .neutral(&["[]"], MULTIMODAL),
        Flag::int("renderer-num-workers", 1, 1024, "Tokenizer threads")
            .default("1")
            .note("tokenizing uses the server's own threads"),
    ],
};

/// Where weights come from and how they are read.
pub const LOAD: Group = Group {
    name: "LoadConfig",
    about: "Where weights come from and how they are read",
    flags: &[
        Flag::choice("load-format", LoadFormat::NAMES, "Format of the weight files; dummy makes random ones")
            .default("auto")
            .rename_values(&[("hf", "auto")])
            .refuse_values(&[(
                &[
                    "npcache",
                    "tensorizer",
                    "mistral",
                    "sharded_state",
                    "runai_streamer",
                    "runai_streamer_sharded",
                    "fastsafetensors",
                    "instanttensor",
                    "modelexpress",
                    "ipc_cache",
                ],
                "Pallium reads no such files; use auto, which reads safetensors in parallel",
            )]),
        Flag::path("download-dir", "Directory for downloads").unset("the hub's cache"),
        Flag::text("safetensors-load-strategy", "How safetensors are read")
            .note("files are mapped and read in parallel"),
        Flag::int("safetensors-prefetch-num-threads", 1, 1024, "Threads that read ahead")
            .default("8")
            .note("files are mapped and read in parallel"),
        Flag::new("safetensors-prefetch-block-size", crate::cli::flag::Kind::Bytes, "Bytes read at once")
            .unset("16 MiB")
            .note("files are mapped and read in parallel"),
        Flag::json("model-loader-extra-config", "Options of a loader")
            .default("{}")
            .note("no loader here has options"),
        Flag::list("ignore-patterns", "Files to leave out of a download")
            .unset("original/**")
            .note("only the files that serving needs are fetched"),
        Flag::new("use-tqdm-on-load", crate::cli::flag::Kind::Bool, "Show a progress bar while loading")
            .default("true")
            .note("progress bars show on a terminal and nowhere else"),
        Flag::text("pt-load-map-location", "Device that PyTorch files are read to")
            .default("cpu")
            .note("weights go straight to the device that runs them"),
        Flag::count("max-parallel-loading-workers", "a count of workers", POSITIVE, ANY, "Loader threads")
            .note("files are mapped and read in parallel"),
    ],
};
