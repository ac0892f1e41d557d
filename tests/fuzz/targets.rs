//! What is fuzzed: each parser that reads what others wrote, by the function that the program enters it with.
//!
//! Two programs drive these: `tests/reliability/mutations.rs`, seeded and part of the ordinary tests, and libFuzzer by
//! `target.rs`. A target returns whatever its input holds; a panic, a hang or an allocation out of proportion is
//! what they look for.

#[path = "gguf.rs"]
pub mod gguf;

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine_core::config::{GenerationConfig, ModelConfig};
use engine_core::layers::decoder::DecoderPlan;
use engine_core::loader::safetensors::SafetensorsFile;
use engine_core::loader::torch_bin::TorchFile;
use engine_core::loader::{Checkpoint, HostBytes, LoadFormat};
use engine_core::quant::checkpoint::Method;
use serde_json::{Map, Value, json};
use server::chat::template::{ChatTemplate, RenderInput};
use server::client::mock::MockConfig;
use server::http::HttpOptions;
use server::text::detokenize::DecodeOptions;
use server::text::sentencepiece::{Place, SentencePiece};
use server::text::tokenizer::{AddSpecial, Tokenizer};

use crate::harness::TestServer;

/// One parser.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// Valid inputs, to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// What it may have allocated at any time, beside [`Target::bytes_per_byte`] of its input.
    pub fixed_bytes: u64,
    pub bytes_per_byte: u64,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "safetensors",
        run: safetensors,
        seeds: safetensors_seeds,
        fixed_bytes: 1 << 20,
        bytes_per_byte: 64,
    },
    Target { name: "torch", run: torch, seeds: torch_seeds, fixed_bytes: 1 << 20, bytes_per_byte: 64 },
    Target { name: "gguf", run: gguf::run, seeds: gguf::seeds, fixed_bytes: 2 << 20, bytes_per_byte: 256 },
    Target { name: "index", run: index, seeds: index_seeds, fixed_bytes: 1 << 20, bytes_per_byte: 64 },
    Target { name: "config", run: config, seeds: config_seeds, fixed_bytes: 4 << 20, bytes_per_byte: 64 },
    Target {
        name: "tokenizer_json",
        run: tokenizer_json,
        seeds: tokenizer_json_seeds,
        fixed_bytes: 8 << 20,
        bytes_per_byte: 1024,
    },
    Target {
        name: "tokenizer_model",
        run: tokenizer_model,
        seeds: tokenizer_model_seeds,
        fixed_bytes: 4 << 20,
        bytes_per_byte: 256,
    },
    // A rendering may make 64 MiB of text whatever its input is.
    Target {
        name: "template",
        run: template,
        seeds: template_seeds,
        fixed_bytes: 256 << 20,
        bytes_per_byte: 256,
    },
    Target {
        name: "completions",
        run: completions,
        seeds: completions_seeds,
        fixed_bytes: 16 << 20,
        bytes_per_byte: 256,
    },
    Target { name: "chat", run: chat, seeds: chat_seeds, fixed_bytes: 16 << 20, bytes_per_byte: 256 },
];

/// The target of a name.
///
/// # Panics
/// If there is none.
pub fn target(name: &str) -> &'static Target {
    TARGETS.iter().find(|target| target.name == name).unwrap_or_else(|| panic!("no target {name}"))
}

fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().find(|dir| dir.join("tests/fixtures").is_dir()).unwrap().to_owned()
}

fn file(path: &str) -> Vec<u8> {
    std::fs::read(root().join(path)).unwrap()
}

fn host_bytes(data: &[u8]) -> HostBytes {
    HostBytes::from(data.to_vec())
}

fn safetensors(data: &[u8]) {
    let Ok(file) = SafetensorsFile::from_bytes(Path::new("x.safetensors"), host_bytes(data)) else { return };
    for info in file.tensors() {
        let tensor = file.tensor(&info.name).unwrap();
        assert_eq!(tensor.bytes.len() as u64 * 8, tensor.len() * u64::from(tensor.dtype.size_bits()));
    }
}

fn safetensors_seeds() -> Vec<Vec<u8>> {
    let header = r#"{"__metadata__":{"format":"pt"},"a.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},
        "b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]},"c":{"dtype":"I64","shape":[],"data_offsets":[32,40]}}"#;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.extend([7; 40]);
    vec![file]
}

fn torch(data: &[u8]) {
    let Ok(file) = TorchFile::from_bytes(Path::new("x.bin"), host_bytes(data)) else { return };
    for name in file.names() {
        if let Ok(Some(tensor)) = file.tensor(name) {
            assert_eq!(tensor.bytes.len() as u64 * 8, tensor.len() * u64::from(tensor.dtype.size_bits()));
        }
    }
}

fn torch_seeds() -> Vec<Vec<u8>> {
    let names = [
        "zip",
        "zip_protocol4",
        "legacy",
        "module",
        "module_legacy",
        "typed",
        "numpy_scalar",
        "evil",
        "evil_legacy",
    ];
    names.iter().map(|name| file(&format!("tests/fixtures/torch_bins/{name}.bin"))).collect()
}

/// A directory of this process's own that one file is written into.
pub fn directory(name: &str) -> PathBuf {
    // In memory where there is such a place: a file is written for each input.
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let dir = base.join(format!("pallium-fuzz-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn index(data: &[u8]) {
    thread_local! {
        static DIR: OnceCell<PathBuf> = const { OnceCell::new() };
    }
    DIR.with(|dir| {
        let dir = dir.get_or_init(|| {
            let dir = directory("index");
            std::fs::write(dir.join("model-1.safetensors"), &safetensors_seeds()[0]).unwrap();
            dir
        });
        std::fs::write(dir.join("model.safetensors.index.json"), data).unwrap();
        if let Ok(checkpoint) = Checkpoint::open(dir, LoadFormat::Safetensors) {
            let names: Vec<String> = checkpoint.names().map(str::to_owned).collect();
            names.iter().for_each(|name| drop(checkpoint.tensor(name)));
        }
    });
}

fn index_seeds() -> Vec<Vec<u8>> {
    let map =
        json!({"a.weight": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-1.safetensors"});
    vec![json!({"metadata": {"total_size": 40}, "weight_map": map}).to_string().into_bytes()]
}

fn config(data: &[u8]) {
    let Ok(map) = serde_json::from_slice::<Map<String, Value>>(data) else { return };
    let _ = GenerationConfig::from_json(&map);
    let Ok(config) = ModelConfig::from_json(map) else { return };
    let _ = Method::of(&config);
    let Ok(family) = engine_core::models::find(&config) else { return };
    let Ok(spec) = (family.spec)(&config) else { return };
    let plan = DecoderPlan::new(&config, spec);
    assert!(!plan.kv_groups(engine_core::DType::F32, 16).is_empty());
    let _ = config.max_model_len(None);
}

fn config_seeds() -> Vec<Vec<u8>> {
    let base = |architecture: &str, extra: Value| {
        let mut config = json!({
            "architectures": [architecture], "model_type": "llama", "vocab_size": 2048, "hidden_size": 64,
            "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 16, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
            "hidden_act": "silu", "rope_theta": 10000.0, "torch_dtype": "bfloat16", "eos_token_id": [1, 2],
            "temperature": 0.7, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1
        });
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        config.to_string().into_bytes()
    };
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128});
    let yarn =
        json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32});
    let longrope = json!({"type": "longrope", "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
        "short_factor": [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], "original_max_position_embeddings": 64});
    let fp8 = json!({"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"});
    let packed = json!({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups":
        {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 32, "block_structure": [64, 64]}}}});
    let gptq = json!({"quant_method": "gptq", "bits": 4, "group_size": 64, "checkpoint_format": "gptq_v2"});
    vec![
        base("LlamaForCausalLM", json!({"quantization_config": fp8})),
        base("LlamaForCausalLM", json!({"quantization_config": packed})),
        base("LlamaForCausalLM", json!({"quantization_config": gptq})),
        base("LlamaForCausalLM", json!({"rope_scaling": llama3})),
        base("LlamaForCausalLM", json!({"rope_scaling": longrope, "attention_bias": true})),
        base("MistralForCausalLM", json!({"sliding_window": 64})),
        base(
            "Qwen2ForCausalLM",
            json!({"use_sliding_window": true, "sliding_window": 32, "max_window_layers": 1}),
        ),
        base(
            "Qwen3ForCausalLM",
            json!({"rope_scaling": yarn, "layer_types": ["full_attention", "sliding_attention", "full_attention"], "sliding_window": 16}),
        ),
    ]
}

fn tokenizer_json(data: &[u8]) {
    thread_local! {
        static DIR: OnceCell<PathBuf> = const { OnceCell::new() };
    }
    let dir = DIR.with(|dir| dir.get_or_init(|| directory("tokenizer")).clone());
    std::fs::write(dir.join("tokenizer.json"), data).unwrap();
    let Ok(tokenizer) = Tokenizer::from_directory(&dir) else { return };
    let _ = tokenizer.check_fits(2048);
    if let Ok(ids) = tokenizer.encode("hello <s> wörld\n 12", AddSpecial::Yes) {
        let _ = tokenizer.decode(&ids, DecodeOptions::default());
    }
    let _ = tokenizer.decode(&[0, 1, 2, 3, 300, u32::MAX], DecodeOptions::default());
}

/// One small tokenizer of each kind.
fn tokenizer_json_seeds() -> Vec<Vec<u8>> {
    let added = json!([{"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true}]);
    let whole = |model: Value, rest: Value| {
        let mut file = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null, "model": model});
        file.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        file.to_string().into_bytes()
    };
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let bpe = json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
        "vocab": {"<s>": 0, "h": 1, "e": 2, "l": 3, "o": 4, "he": 5, "ll": 6, "hell": 7, "Ġ": 8}, "merges": [["h", "e"], ["l", "l"], ["he", "ll"]]});
    let unigram = json!({"type": "Unigram", "unk_id": 0, "byte_fallback": false,
        "vocab": [["<s>", 0.0], ["▁hello", -1.5], ["▁", -2.0], ["l", -3.0], ["o", -3.5]]});
    let pieces = json!({"type": "WordPiece", "unk_token": "<s>", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": {"<s>": 0, "hello": 1, "##o": 2, "h": 3}});
    let words = json!({"type": "WordLevel", "vocab": {"<s>": 0, "hello": 1}, "unk_token": "<s>"});
    let metaspace =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true});
    let split = json!({"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": "\\s+|\\w+"},
        "behavior": "Isolated", "invert": false}, bytes]});
    let template = json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}});
    let replace = json!({"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
    vec![
        whole(bpe, json!({"pre_tokenizer": split, "decoder": bytes, "post_processor": template})),
        whole(
            unigram,
            json!({"pre_tokenizer": metaspace, "decoder": replace, "normalizer": {"type": "NFC"}}),
        ),
        whole(
            pieces,
            json!({"pre_tokenizer": {"type": "Whitespace"}, "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true}}),
        ),
        whole(
            words,
            json!({"pre_tokenizer": {"type": "WhitespaceSplit"}, "normalizer": {"type": "Lowercase"}}),
        ),
    ]
}

fn tokenizer_model(data: &[u8]) {
    if let Ok(model) = SentencePiece::from_bytes(data) {
        let ids = model.encode("kalo mi ﬁ <tool> 日本", Place::Start);
        assert!(ids.iter().all(|id| (*id as usize) < model.pieces().len()));
    }
}

fn tokenizer_model_seeds() -> Vec<Vec<u8>> {
    ["bpe_bytes", "unigram", "unigram_bytes"]
        .iter()
        .map(|name| file(&format!("tests/fixtures/tokenizers/{name}.model")))
        .collect()
}

fn template(data: &[u8]) {
    let Ok(source) = std::str::from_utf8(data) else { return };
    let special: Map<String, Value> =
        json!({"bos_token": "<s>", "eos_token": "</s>"}).as_object().unwrap().clone();
    let Ok(template) = ChatTemplate::new(source, &special) else { return };
    let messages = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2", "tool_calls": [{"function": {"name": "f", "arguments": {"x": [1, 2.5]}}}]}]);
    let tools = json!([{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object",
        "properties": {"x": {"type": "number"}}, "required": ["x"]}}}]);
    for continue_final_message in [false, true] {
        let _ = template.render(&RenderInput {
            messages: Some(&messages),
            tools: Some(&tools),
            add_generation_prompt: !continue_final_message,
            continue_final_message,
            ..Default::default()
        });
    }
}

fn template_seeds() -> Vec<Vec<u8>> {
    let operators = "{% set n = namespace(x='a', l=[1]) %}{% for i in range(12) %}{% set n.x = n.x ~ loop.index + 'b' * 3 %}\
        {% set n.l = n.l + [i] %}{% endfor %}{{ n.x|upper|indent(2) ~ n.l|join(', ')|replace('1', '22') }}\
        {{ '%5d|%s'|format(3, 'x') }}{{ '{:>8}'.format(n.x[:3]) }}{{ messages|tojson(indent=2) }}{{ n.l|batch(2)|list }}";
    let named = ["chatml-tools", "instruct"];
    let files = named.iter().map(|name| file(&format!("tests/fixtures/chat-templates/{name}.jinja")));
    files.chain([operators.as_bytes().to_vec()]).collect()
}

fn completions(data: &[u8]) {
    post("/v1/completions", data);
}

fn completions_seeds() -> Vec<Vec<u8>> {
    let sampled = json!({"model": "mock", "prompt": "Once upon", "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 5,
        "min_p": 0.1, "n": 2, "best_of": 2, "seed": 7, "stop": ["x", "yz"], "presence_penalty": 0.5,
        "frequency_penalty": -0.5, "repetition_penalty": 1.2, "logit_bias": {"5": -100, "7": 3.5}, "logprobs": 2, "echo": true});
    let others = json!({"prompt": [[1, 2, 3], [4]], "max_tokens": 4, "min_tokens": 1, "stream": true,
        "stream_options": {"include_usage": true, "continuous_usage_stats": true}, "stop_token_ids": [9], "ignore_eos": true,
        "allowed_token_ids": [1, 2, 3], "bad_words": ["bad"], "prompt_logprobs": 1, "truncate_prompt_tokens": 2,
        "add_special_tokens": false, "skip_special_tokens": false, "priority": 3, "cache_salt": "s", "user": "u"});
    [sampled, others].map(|body| body.to_string().into_bytes()).to_vec()
}

fn chat(data: &[u8]) {
    post("/v1/chat/completions", data);
}

fn chat_seeds() -> Vec<Vec<u8>> {
    let parts = json!([{"type": "text", "text": "hi"}, {"type": "text", "text": "there"}]);
    let plain = json!({"model": "mock", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": parts}],
        "max_completion_tokens": 5, "logprobs": true, "top_logprobs": 2, "n": 2, "stop": "x",
        "chat_template_kwargs": {"shout": true}, "add_generation_prompt": true, "response_format": {"type": "text"}});
    let tools = json!({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": null, "tool_calls":
        [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "2"}, {"role": "assistant", "content": "so"}],
        "continue_final_message": true, "add_generation_prompt": false, "stream": true, "max_tokens": 3,
        "tool_choice": "none", "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]});
    [plain, tools].map(|body| body.to_string().into_bytes()).to_vec()
}

struct Wire {
    runtime: tokio::runtime::Runtime,
    server: TestServer,
}

/// A body to a server whose model echoes. Whatever it holds, the answer is whole and the fault is the client's.
fn post(path: &str, data: &[u8]) {
    thread_local! {
        static WIRE: OnceCell<Arc<Wire>> = const { OnceCell::new() };
    }
    let wire = WIRE.with(|wire| wire.get_or_init(|| Arc::new(wire_up())).clone());
    let answer = wire.runtime.block_on(wire.server.post_bytes(path, data.to_vec()));
    assert!(matches!(answer.status, 200 | 400 | 404 | 503), "{}: {}", answer.status, answer.body);
    if answer.body.starts_with("data: ") {
        answer.events();
    } else {
        answer.json();
    }
}

fn wire_up() -> Wire {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // Few sequences, so that a body that asks for thousands of answers is refused and not waited for.
    let config = MockConfig { max_num_queued_reqs: 32, ..MockConfig::new(64) };
    let server = runtime.block_on(async { TestServer::with(config, HttpOptions::default()).start() });
    Wire { runtime, server }
}
