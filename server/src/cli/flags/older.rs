//! Names that vLLM had or has and Pallium does not offer: mapped to what they are called now, accepted
//! without effect, or refused with what to use instead. They parse, so that an older script starts or hears why not;
//! help and suggestions do not show them.

use crate::cli::flag::{Flag, Group, Kind, Map, Mapped};

const RAY: &str = "workers are threads of this process; there is no Ray";
const TOKENIZER_POOL: &str = "tokenizing uses the server's own threads";
const IMAGES: &str = "models describe their own image input";
const PYTHON: &str = "it names Python code, and there is no Python here";
const CONTEXT_PARALLEL: &str = "context parallelism is not in Pallium; leave it out";
const TUNING: &str = "it tunes large expert-parallel clusters in a way Pallium does not have; leave it out";
const RL: &str = "it serves training loops of another engine; leave it out";

/// Names with a successor or without effect.
pub const OLDER: Group = Group {
    name: "Older",
    about: "Older names that are still understood, with one notice each",
    flags: &[
        Flag::text("speculative-model", "")
            .mapped(Map::By("--speculative-config.model, or .method for [ngram]", speculative_model)),
        Flag::text("num-speculative-tokens", "").mapped(Map::To("speculative-config.num_speculative_tokens")),
        Flag::text("speculative-max-model-len", "").mapped(Map::To("speculative-config.max_model_len")),
        Flag::text("speculative-disable-by-batch-size", "")
            .mapped(Map::To("speculative-config.disable_by_batch_size")),
        Flag::text("ngram-prompt-lookup-max", "").mapped(Map::To("speculative-config.prompt_lookup_max")),
        Flag::text("ngram-prompt-lookup-min", "").mapped(Map::To("speculative-config.prompt_lookup_min")),
        Flag::text("rope-scaling", "").mapped(Map::To("hf-overrides.rope_scaling")),
        Flag::text("rope-theta", "").mapped(Map::To("hf-overrides.rope_theta")),
        Flag::text("guided-decoding-backend", "").mapped(Map::To("structured-outputs-config.backend")),
        Flag::text("max-seq-len-to-capture", "")
            .mapped(Map::By("--enforce-eager for 0, else nothing", capture_length)),
        Flag::text("max-context-len-to-capture", "")
            .mapped(Map::By("--enforce-eager for 0, else nothing", capture_length)),
        Flag::text("preemption-mode", "").mapped(Map::By("nothing: recompute is the mode", preemption_mode)),
        Flag::new("disable-log-requests", Kind::Bool, "").mapped(Map::Negate("enable-log-requests")),
        Flag::new("disable-frontend-multiprocessing", Kind::Bool, "")
            .accepted("the front end is part of this process"),
        Flag::new("enable-metrics", Kind::Bool, "").accepted("/metrics is always on"),
        Flag::text("swap-space", "").accepted("preempted requests are recomputed, not swapped"),
        Flag::new("worker-use-ray", Kind::Bool, "").accepted(RAY),
        Flag::new("engine-use-ray", Kind::Bool, "").accepted(RAY),
        Flag::new("ray-workers-use-nsight", Kind::Bool, "").accepted(RAY),
        Flag::new("use-v2-block-manager", Kind::Bool, "").accepted("there is one block manager"),
        Flag::text("num-lookahead-slots", "").accepted("slots for drafts are reserved as needed"),
        Flag::text("scheduler-delay-factor", "").accepted("no prompt is delayed on purpose"),
        Flag::text("tokenizer-pool-size", "").accepted(TOKENIZER_POOL),
        Flag::text("tokenizer-pool-type", "").accepted(TOKENIZER_POOL),
        Flag::text("tokenizer-pool-extra-config", "").accepted(TOKENIZER_POOL),
        Flag::text("lora-extra-vocab-size", "").accepted("adapters add no words"),
        Flag::text("image-input-type", "").accepted(IMAGES),
        Flag::text("image-token-id", "").accepted(IMAGES),
        Flag::text("image-input-shape", "").accepted(IMAGES),
        Flag::text("image-feature-size", "").accepted(IMAGES),
        Flag::new("image-input-disable-hf-processor", Kind::Bool, "").accepted(IMAGES),
    ],
};

/// Names that are refused.
pub const REFUSED: Group = Group {
    name: "Refused",
    about: "Names of vLLM that are refused, each with what to use instead",
    flags: &[
        Flag::list("middleware", "").refused("it names Python code; put a proxy in front of the server"),
        Flag::text("qlora-adapter-name-or-path", "")
            .refused("load the quantized base model and give the adapter with --lora-modules"),
        Flag::text("long-lora-scaling-factors", "")
            .refused("use an adapter of a model with a long context of its own"),
        Flag::path("quantization-param-path", "")
            .refused("KV scales are read from the checkpoint; use --kv-cache-dtype"),
        Flag::path("tool-parser-plugin", "").refused("it names Python code; use --tool-call-parser"),
        Flag::path("reasoning-parser-plugin", "").refused("it names Python code; use --reasoning-parser"),
        Flag::text("tool-server", "").refused("Pallium calls no tools itself; the client does"),
        Flag::list("logits-processors", "").refused(PYTHON),
        Flag::text("io-processor-plugin", "").refused(PYTHON),
        Flag::json("model-class-overrides", "").refused(PYTHON),
        Flag::text("scheduler-cls", "").refused(PYTHON),
        Flag::text("worker-cls", "").refused(PYTHON),
        Flag::text("worker-extension-cls", "").refused(PYTHON),
        Flag::switch("enable-return-routed-experts", "").refused(RL),
        Flag::switch("return-sampling-mask", "").refused(RL),
        Flag::switch("enable-trace-replay", "").refused(RL),
        Flag::switch("use-fp64-gumbel", "").refused("the draw has one precision; leave it out"),
        Flag::text("decode-context-parallel-size", "").alias(&["-dcp"]).refused(CONTEXT_PARALLEL),
        Flag::text("prefill-context-parallel-size", "").alias(&["-pcp"]).refused(CONTEXT_PARALLEL),
        Flag::text("dcp-comm-backend", "").refused(CONTEXT_PARALLEL),
        Flag::switch("dcp-q-replicate", "").refused(CONTEXT_PARALLEL),
        Flag::text("dcp-kv-cache-interleave-size", "").refused(CONTEXT_PARALLEL),
        Flag::text("cp-kv-cache-interleave-size", "").refused(CONTEXT_PARALLEL),
        Flag::switch("enable-hc-sp", "").refused(TUNING),
        Flag::switch("enable-batch-sharded-sampling", "").refused(TUNING),
        Flag::switch("enable-dbo", "").refused(TUNING),
        Flag::text("dbo-decode-token-threshold", "").refused(TUNING),
        Flag::text("dbo-prefill-token-threshold", "").refused(TUNING),
        Flag::text("ubatch-size", "").refused(TUNING),
        Flag::text("dp-sync-interval", "").refused(TUNING),
        Flag::switch("enable-shm-tensor-arena", "").refused(TUNING),
        Flag::switch("enable-elastic-ep", "").refused(TUNING),
        Flag::text("elastic-ep-max-dp-size", "").refused(TUNING),
        Flag::switch("enable-fault-tolerance", "").refused("let the orchestrator restart the process"),
        Flag::json("fault-tolerance-config", "").refused("let the orchestrator restart the process"),
        Flag::text("prefix-cache-retention-interval", "")
            .refused("pages leave the cache least recently used first"),
        Flag::text("prefix-match-unit", "").refused("prefixes match by pages; see --block-size"),
        Flag::switch("swa-bounded-replay", "")
            .refused("window pages are kept as long as a window reads them"),
        Flag::switch("cohere-is-reasoning-model", "")
            .refused("Cohere's API is not offered; use /v1/chat/completions"),
        Flag::text("cohere-format", "").refused("Cohere's API is not offered; use /v1/chat/completions"),
        Flag::text("anthropic-disabled-thinking-effort", "")
            .refused("give the template its arguments with --default-chat-template-kwargs"),
        Flag::text("data-parallel-supervisor-port", "")
            .refused("let the orchestrator supervise the processes"),
        Flag::text("dp-supervisor-probe-interval-s", "")
            .refused("let the orchestrator supervise the processes"),
        Flag::text("dp-supervisor-probe-timeout-s", "")
            .refused("let the orchestrator supervise the processes"),
        Flag::text("dp-supervisor-probe-failure-threshold", "")
            .refused("let the orchestrator supervise the processes"),
    ],
};

fn speculative_model(value: &str) -> Mapped {
    match value {
        "[ngram]" => Mapped::Set("speculative-config.method", "ngram".to_owned()),
        model => Mapped::Set("speculative-config.model", model.to_owned()),
    }
}

fn capture_length(value: &str) -> Mapped {
    match value {
        "0" => Mapped::Set("enforce-eager", "true".to_owned()),
        _ => Mapped::Nothing("captured graphs hold for every length"),
    }
}

fn preemption_mode(value: &str) -> Mapped {
    match value {
        "recompute" => Mapped::Nothing("preempted requests are always recomputed"),
        "swap" => Mapped::Nothing("preempted requests are recomputed, not swapped"),
        _ => Mapped::Refused("recompute is the only mode; leave it out"),
    }
}
