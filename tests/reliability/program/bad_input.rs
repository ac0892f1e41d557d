//! Wrong models, files and flags: exit status 1 and one line that names the thing, its value and what would be right.

use std::io::Read;
use std::path::PathBuf;

use engine_core::DType;
use engine_core::loader::write::{WriteOptions, make_checkpoint};
use serde_json::{Map, Value, json};

use crate::process::{Server, bundled_model, run};

/// A small checkpoint in a directory of its own, gone at the end of the test.
struct Model {
    dir: PathBuf,
}

impl Model {
    fn new(name: &str) -> Model {
        let dir = std::env::temp_dir().join(format!("pallium-bad-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let options = WriteOptions { dtype: DType::F32, seed: 1, shard_bytes: 1 << 30, threads: 1 };
        make_checkpoint(&config(), &dir, &options, &|_| {}).unwrap();
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(bundled_model().join(file), dir.join(file)).unwrap();
        }
        Model { dir }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    fn write(&self, file: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.path(file), bytes).unwrap();
    }

    fn remove(&self, file: &str) {
        std::fs::remove_file(self.path(file)).unwrap();
    }

    fn truncate(&self, file: &str) {
        let bytes = std::fs::read(self.path(file)).unwrap();
        self.write(file, &bytes[..bytes.len() / 2]);
    }

    /// Changes keys of config.json; null removes one.
    fn configure(&self, changes: &Value) {
        let mut config: Map<String, Value> =
            serde_json::from_slice(&std::fs::read(self.path("config.json")).unwrap()).unwrap();
        for (key, value) in changes.as_object().unwrap() {
            match value {
                Value::Null => drop(config.remove(key)),
                _ => drop(config.insert(key.clone(), value.clone())),
            }
        }
        self.write("config.json", Value::Object(config).to_string());
    }

    /// Rewrites the header of model.safetensors as text.
    fn header(&self, change: impl Fn(String) -> String) {
        let path = self.path("model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let old = String::from_utf8(bytes[8..8 + length].to_vec()).unwrap();
        let new = change(old.clone());
        assert_ne!(old, new, "the change must change something");
        let mut file = (new.len() as u64).to_le_bytes().to_vec();
        file.extend(new.bytes());
        file.extend(&bytes[8 + length..]);
        std::fs::write(path, file).unwrap();
    }

    /// What `pallium serve` says of it: exactly one line.
    fn refusal(&self, flags: &[&str]) -> String {
        let dir = self.dir.display().to_string();
        let words =
            [&["serve", &dir, "--port", "0", "--device", "null", "--log-level", "error"], flags].concat();
        refusal(&words).replace(&dir, "DIR")
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn config() -> Map<String, Value> {
    let bundled = std::fs::read(bundled_model().join("config.json")).unwrap();
    let bundled: Value = serde_json::from_slice(&bundled).unwrap();
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": bundled["vocab_size"],
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": true
    });
    config.as_object().unwrap().clone()
}

fn refusal(words: &[&str]) -> String {
    let (status, said) = run(words);
    assert_eq!(status, Some(1), "{words:?}: {said}");
    let line = said.strip_suffix('\n').unwrap_or(&said);
    assert!(!line.contains('\n'), "more than one line: {said}");
    line.strip_prefix("error: ").unwrap_or_else(|| panic!("no error line: {said}")).to_owned()
}

type Damage = Box<dyn Fn(&Model)>;

/// Each case: what is damaged, with which flags it is served, and the line.
fn check(cases: Vec<(&str, Damage, &[&str], &str)>) {
    for (name, damage, flags, wanted) in cases {
        let model = Model::new(name);
        damage(&model);
        assert_eq!(model.refusal(flags), wanted, "{name}");
    }
}

fn configured(changes: Value) -> Damage {
    Box::new(move |m| m.configure(&changes))
}

fn written(file: &'static str, bytes: impl AsRef<[u8]> + 'static) -> Damage {
    Box::new(move |m| m.write(file, &bytes))
}

fn removed(file: &'static str) -> Damage {
    Box::new(move |m| m.remove(file))
}

fn truncated(file: &'static str) -> Damage {
    Box::new(move |m| m.truncate(file))
}

fn header(from: &'static str, to: &'static str) -> Damage {
    Box::new(move |m| m.header(|h| h.replacen(from, to, 1)))
}

fn untouched() -> Damage {
    Box::new(|_| {})
}

#[test]
fn config_json() {
    let known = "known architectures are LlamaForCausalLM, LLaMAForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, \
                 Qwen3ForCausalLM";
    let unknown =
        format!("config.json: architectures is [\"MambaForCausalLM\"] (model_type \"llama\"); {known}");
    let none = format!("config.json: architectures is [] (model_type \"\"); {known}");
    check(vec![
        (
            "config-missing",
            removed("config.json"),
            &[],
            "DIR: has no config.json; a model directory in Hugging Face layout is wanted",
        ),
        (
            "config-truncated",
            written("config.json", "{\"model_type\":"),
            &[],
            "DIR/config.json: is no valid JSON: EOF while parsing a value at line 1 column 14",
        ),
        (
            "config-array",
            written("config.json", "[]"),
            &[],
            "DIR/config.json: is []; a JSON object is wanted",
        ),
        (
            "config-no-hidden",
            configured(json!({"hidden_size": null})),
            &[],
            "config.json: hidden_size is missing; a whole number of at least 1 is wanted",
        ),
        (
            "config-heads",
            configured(json!({"num_attention_heads": 3, "num_key_value_heads": 2})),
            &[],
            "config.json: num_key_value_heads is 2; a divisor of num_attention_heads (3) is wanted",
        ),
        (
            "config-type",
            configured(json!({"vocab_size": "many"})),
            &[],
            "config.json: vocab_size is \"many\"; a whole number of at least 1 is wanted",
        ),
        (
            "config-zero",
            configured(json!({"hidden_size": 0})),
            &[],
            "config.json: hidden_size is 0; a whole number of at least 1 is wanted",
        ),
        (
            "config-huge",
            configured(json!({"hidden_size": 1e30})),
            &[],
            "config.json: hidden_size is 1e+30; a whole number of at least 1 is wanted",
        ),
        ("config-unknown", configured(json!({"architectures": ["MambaForCausalLM"]})), &[], &unknown),
        ("config-none", configured(json!({"architectures": null, "model_type": null})), &[], &none),
    ]);
}

#[test]
fn config_json_that_contradicts_itself() {
    let one = |name, changes, wanted| check(vec![(name, configured(changes), &[], wanted)]);
    one(
        "config-multiple",
        json!({"hidden_size": 33}),
        "config.json: hidden_size is 33; a multiple of num_attention_heads (2), or a head_dim, is wanted",
    );
    one(
        "config-yarn",
        json!({"rope_scaling": {"rope_type": "yarn"}}),
        "config.json: rope_scaling.factor is missing; a number above 0 is wanted",
    );
    one(
        "config-rope",
        json!({"rope_scaling": {"rope_type": "spiral", "factor": 2}}),
        "config.json: rope_scaling.rope_type is \"spiral\"; one of default, linear, dynamic, llama3, yarn, longrope is \
         wanted",
    );
    one(
        "config-dtype",
        json!({"torch_dtype": "int8"}),
        "config.json: torch_dtype is \"int8\"; one of float32, float16, bfloat16 is wanted",
    );
    one(
        "config-window",
        json!({"architectures": ["MistralForCausalLM"], "sliding_window": -1}),
        "config.json: sliding_window is -1; a whole number of at least 1 is wanted",
    );
    one(
        "config-untied",
        json!({"tie_word_embeddings": false}),
        "DIR: has no tensor lm_head.weight (it has 11, such as model.norm.weight)",
    );
    let unicode = written("config.json", b"{\"a\": \"\xff\"}");
    check(vec![(
        "config-utf8",
        unicode,
        &[],
        "DIR/config.json: is no valid JSON: invalid unicode code point at line 1 column 8",
    )]);
}

#[test]
fn weight_files() {
    let long_header = [&(1_u64 << 60).to_le_bytes()[..], &[b'{'; 64]].concat();
    check(vec![
        (
            "weights-missing",
            removed("model.safetensors"),
            &[],
            "DIR: holds no weights; one of model.safetensors.index.json, model.safetensors, \
             pytorch_model.bin.index.json, pytorch_model.bin is wanted",
        ),
        (
            "weights-truncated",
            truncated("model.safetensors"),
            &[],
            "DIR/model.safetensors: tensor model.embed_tokens.weight ends at byte 262144 of the data, but the file \
             holds only 146048 bytes of it (truncated download?)",
        ),
        (
            "weights-empty",
            written("model.safetensors", ""),
            &[],
            "DIR/model.safetensors: has 0 bytes; a safetensors file starts with an 8-byte header length",
        ),
        (
            "weights-header",
            written("model.safetensors", long_header),
            &[],
            "DIR/model.safetensors: says its header is 1152921504606846976 bytes long; the format allows 100000000 \
             (is it a safetensors file?)",
        ),
    ]);
}

#[test]
fn weight_tensors() {
    check(vec![
        (
            "weights-dtype",
            header("\"F32\"", "\"I32\""),
            &[],
            "DIR/model.safetensors: tensor model.embed_tokens.weight is stored as I32; float32, float16 or bfloat16 \
             is wanted",
        ),
        (
            "weights-backwards",
            header("\"data_offsets\":[0,", "\"data_offsets\":[18446744073709551600,"),
            &[],
            "DIR/model.safetensors: header: tensor model.embed_tokens.weight: data_offsets [18446744073709551600, \
             262144] run backwards at line 1 column 138",
        ),
        (
            "weights-shape",
            header("[32]", "[16,2]"),
            &[],
            "DIR/model.safetensors: tensor model.layers.0.input_layernorm.weight has shape [16, 2]; config.json makes \
             it [32]",
        ),
        (
            "weights-overflow",
            header("[32]", "[1099511627776,1099511627776]"),
            &[],
            "DIR/model.safetensors: header: tensor model.layers.0.input_layernorm.weight: the size of shape \
             [1099511627776, 1099511627776] of F32 is no whole number of bytes below 2^61 at line 1 column 244",
        ),
        (
            "weights-renamed",
            header("model.norm.weight", "model.norm.wait"),
            &[],
            "DIR: has no tensor model.norm.weight (it has 11, such as model.layers.0.post_attention_layernorm.weight)",
        ),
        (
            "weights-layers",
            configured(json!({"num_hidden_layers": 2})),
            &[],
            "DIR: has no tensor model.layers.1.input_layernorm.weight (it has 11, such as \
             model.layers.0.input_layernorm.weight)",
        ),
        (
            "weights-hidden",
            configured(json!({"hidden_size": 64})),
            &[],
            "DIR/model.safetensors: tensor model.embed_tokens.weight has shape [2048, 32]; config.json makes it \
             [2048, 64]",
        ),
    ]);
}

#[test]
fn index_json() {
    const INDEX: &str = "model.safetensors.index.json";
    check(vec![
        (
            "index-file",
            written(INDEX, r#"{"weight_map": {"model.norm.weight": "gone.safetensors"}}"#),
            &[],
            "DIR/model.safetensors.index.json: tensor model.norm.weight is said to be in gone.safetensors, which is \
             not there (incomplete download?)",
        ),
        (
            "index-truncated",
            written(INDEX, r#"{"weight_map": {"#),
            &[],
            "DIR/model.safetensors.index.json: is no valid JSON: EOF while parsing an object at line 1 column 16",
        ),
        (
            "index-tensor",
            written(INDEX, r#"{"weight_map": {"nobody": "model.safetensors"}}"#),
            &[],
            "DIR/model.safetensors.index.json: tensor nobody is said to be in DIR/model.safetensors, which has no \
             such tensor",
        ),
        (
            "index-outside",
            written(INDEX, r#"{"weight_map": {"model.norm.weight": "../x.safetensors"}}"#),
            &[],
            "DIR/model.safetensors.index.json: tensor model.norm.weight is in \"../x.safetensors\"; a file name is \
             wanted",
        ),
    ]);
}

#[test]
fn tokenizer_template_and_defaults() {
    check(vec![
        (
            "tokenizer-missing",
            removed("tokenizer.json"),
            &[],
            "DIR: no tokenizer here; looked for tokenizer.json, tokenizer.model, and vocab.json with merges.txt \
             (--tokenizer names another directory)",
        ),
        (
            "tokenizer-truncated",
            written("tokenizer.json", "{\"model\":"),
            &[],
            "DIR/tokenizer.json: is no tokenizer: EOF while parsing a value at line 1 column 9",
        ),
        (
            "tokenizer-vocabulary",
            configured(json!({"vocab_size": 100})),
            &[],
            "the tokenizer does not match the model: token \"\u{120}cherry\" has id 2047, but the model's vocabulary \
             has 100 entries (ids below that); check --tokenizer",
        ),
        (
            "template-open",
            written("chat_template.jinja", "{% for m in messages %}"),
            &[],
            "chat template, line 1: unexpected end of input, expected end of block",
        ),
        (
            "template-flag",
            untouched(),
            &["--chat-template", "{{ messages | }}"],
            "chat template, line 1: unexpected end of variable block, expected identifier",
        ),
        (
            "template-file",
            untouched(),
            &["--chat-template", "/nowhere.jinja"],
            "--chat-template /nowhere.jinja: no such file, and no template either (it holds none of { })",
        ),
        (
            "defaults-type",
            written("generation_config.json", "{\"temperature\": \"hot\"}"),
            &[],
            "generation_config.json: temperature is \"hot\"; a number is wanted",
        ),
        (
            "defaults-missing",
            untouched(),
            &["--generation-config", "/nowhere"],
            "--generation-config: /nowhere/generation_config.json is not there; give a directory that has one, auto \
             or vllm",
        ),
    ]);
}

#[test]
fn memory_and_sizes() {
    check(vec![
        (
            "kv-bytes",
            untouched(),
            &["--kv-cache-memory-bytes", "1K"],
            "out of memory: the KV cache of one request of 256 tokens needs 34816 bytes, 1024 bytes are free; 33792 \
             bytes are missing: raise --kv-cache-memory-bytes or lower --max-model-len (or give --max-model-len auto)",
        ),
        (
            "kv-pages",
            untouched(),
            &["--num-gpu-blocks-override", "3"],
            "out of memory: the KV cache of one request of 256 tokens needs 34816 bytes, 8192 bytes are free; 26624 \
             bytes are missing: raise --num-gpu-blocks-override or lower --max-model-len (or give --max-model-len \
             auto)",
        ),
        (
            "length",
            untouched(),
            &["--max-model-len", "1000"],
            "--max-model-len 1000: the model's context is 256 tokens (max_position_embeddings 256); a value from 1 to \
             256 is wanted, or rope scaling through --hf-overrides",
        ),
        (
            "block",
            untouched(),
            &["--block-size", "17"],
            "--block-size 17: null has pages of [16, 32, 64, 128] tokens",
        ),
    ]);
    let model = Model::new("kv-more-than-there-is");
    let said = model.refusal(&["--num-gpu-blocks-override", "4000000000"]);
    assert!(said.starts_with("out of memory: the KV cache needs 8192000002048 bytes, "), "{said}");
    assert!(said.ends_with(" bytes are missing: lower --num-gpu-blocks-override"), "{said}");
}

/// No machine has this much: 100 layers of 10 * 65536^2 elements.
#[test]
fn weights_larger_than_memory_are_refused_before_they_are_read() {
    let model = Model::new("weights-more-than-there-is");
    model.configure(&json!({
        "hidden_size": 65536, "intermediate_size": 131_072, "num_hidden_layers": 100, "num_attention_heads": 512,
        "num_key_value_heads": 512, "vocab_size": 2048
    }));
    for (dtype, gib, smaller) in [
        ("float32", 16_000, "give --dtype bfloat16 (half the bytes), choose a smaller model,"),
        ("bfloat16", 8_000, "choose a smaller model"),
    ] {
        let start = std::time::Instant::now();
        let dir = model.dir.display().to_string();
        let said = refusal(
            &[
                &["serve", &dir, "--port", "0", "--log-level", "error", "--device", "cpu"][..],
                &["--load-format", "dummy", "--dtype", dtype],
            ]
            .concat(),
        );
        let number = |from: &str, to: &str| -> u64 {
            said.split(from).nth(1).and_then(|rest| rest.split(to).next()).unwrap().parse().unwrap()
        };
        let (wanted, free) = (number(" needs ", " bytes, "), number(" bytes, ", " bytes are free"));
        assert_eq!(wanted >> 30, gib, "{said}");
        let missing = wanted - free;
        let line = format!(
            "out of memory: loading the weights in {dtype} needs {wanted} bytes, {free} bytes are free; {missing} \
             bytes are missing: {smaller} or a machine with more memory"
        );
        assert_eq!(said, line);
        assert!(start.elapsed() < std::time::Duration::from_secs(20), "{:?}", start.elapsed());
    }
}

#[test]
fn a_port_in_use_and_models_that_are_nowhere() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let quiet = ["serve", "--log-level", "error", "--device", "null", "--host", "127.0.0.1"];
    let said = refusal(&[&quiet[..], &["--port", &port]].concat());
    let start = format!("cannot listen on 127.0.0.1 port {port}: ");
    let end = "; it is in use by another process; choose another with --port, or 0 for any free one";
    assert!(said.starts_with(&start) && said.ends_with(end), "{said}");

    let of_model = |model: &str| refusal(&[&quiet[..], &["--port", "0", "--model", model]].concat());
    let said = of_model("/nowhere/model");
    assert_eq!(said, "/nowhere/model: is neither a directory nor a hub id of the form org/name");
    let said = of_model("no-such/model");
    assert!(said.starts_with("no-such/model: HF_HUB_OFFLINE is set, and it is not in the cache"), "{said}");
}

/// What is wrong on the line itself ends with status 2, and what is not there yet says so.
#[test]
fn flags_that_are_not_honoured_are_refused() {
    let cases: &[(&[&str], &str)] = &[
        (&["--threads", "0"], "--threads: 0 is too small; the least is 1"),
        (&["--max-num-seqs", "0"], "--max-num-seqs: 0 is too small; the least is 1"),
        (
            &["--max-num-batched-tokens", "8", "--max-num-seqs", "16"],
            "--max-num-batched-tokens: 8 is less than --max-num-seqs 16: each running request needs a token a step",
        ),
        (
            &["--logprobs-mode", "processed_logprobs"],
            "--logprobs-mode: 'processed_logprobs' is not supported; log-probabilities are of the model's own \
             distribution (raw_logprobs) in this version",
        ),
        (
            &["--tensor-parallel-size", "2"],
            "--tensor-parallel-size: tensor parallelism is not in this version; leave it out, or at 1",
        ),
        (&["--enable-lora"], "--enable-lora: LoRA adapters are not in this version; leave it out"),
        (&["--api-key="], "--api-key: a key is empty; give one, or leave it out to let everyone in"),
    ];
    for (flags, wanted) in cases {
        let (status, said) = run(&[&["serve"], *flags].concat());
        assert_eq!((status, said.as_str()), (Some(2), format!("error: {wanted}\n").as_str()), "{flags:?}");
    }
}

/// Flags whose effect only the whole program shows.
#[test]
fn flags_that_are_taken_are_honoured() {
    let model = Model::new("honoured");
    let dir = model.dir.display().to_string();
    let server = Server::start(&[
        &dir,
        "--device",
        "null",
        "--hf-overrides",
        "{\"max_position_embeddings\": 512}",
        "--num-gpu-blocks-override",
        "40",
        "--served-model-name",
        "named",
        "--root-path",
        "/below",
        "--override-generation-config",
        "{\"max_new_tokens\": 3}",
        "--no-async-scheduling",
        "--long-prefill-token-threshold",
        "4",
        "--enable-log-requests",
        "--disable-log-stats",
    ]);
    let models: Value = serde_json::from_str(&server.get("/below/v1/models").1).unwrap();
    assert_eq!(
        (&models["data"][0]["id"], &models["data"][0]["max_model_len"]),
        (&json!("named"), &json!(512))
    );
    assert!(server.get("/metrics").1.contains("num_gpu_blocks=\"40\""));
    let mut answer = String::new();
    let body = json!({"prompt": "one two three four five six seven", "ignore_eos": true});
    server.complete(&body).read_to_string(&mut answer).unwrap();
    assert!(answer.contains("\"completion_tokens\":3"), "{answer}");
    assert!(server.log().contains("one two three four"), "{}", server.log());
    // The prompt of more than four tokens was computed in more than one step: no step had more than four.
    let metrics = server.get("/metrics").1;
    let bucket = metrics
        .lines()
        .find(|l| l.starts_with("vllm:iteration_tokens_total_bucket") && l.contains("le=\"8.0\""));
    let whole = metrics.lines().find(|l| l.starts_with("vllm:iteration_tokens_total_count"));
    let number = |line: Option<&str>| line.and_then(|l| l.rsplit(' ').next()).map(str::to_owned);
    assert_eq!(number(bucket), number(whole), "{metrics}");
    assert!(number(whole).is_some());
}
