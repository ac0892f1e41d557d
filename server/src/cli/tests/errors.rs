//! What a wrong line hears.

use super::*;

#[test]
fn messages() {
    let cases = [
        (
            "serve --max-model-len 12q",
            "error: --max-model-len: '12q' is not a number; give a count of tokens such as 8192, 8k (8,000) or 8K (8,192), or auto",
        ),
        ("serve --max-model-len 0", "error: --max-model-len: 0 is too small; the least is 1"),
        ("serve --port 70000", "error: --port: 70000 is too large; the most is 65535"),
        ("serve --port -1", "error: --port: -1 is too small; the least is 0"),
        ("serve --port", "error: --port: a value is missing; give a whole number from 0 to 65535"),
        ("serve --port --uds x", "error: --port: a value is missing; give a whole number from 0 to 65535"),
        ("serve --threads 0", "error: --threads: 0 is too small; the least is 1"),
        ("serve --max-num-seqs 0", "error: --max-num-seqs: 0 is too small; the least is 1"),
        ("serve --max_num_seqs 0", "error: --max_num_seqs: 0 is too small; the least is 1"),
        (
            "serve --gpu-memory-utilization 1.5",
            "error: --gpu-memory-utilization: 1.5 is out of range; give a number above 0 and at most 1",
        ),
        (
            "serve --gpu-memory-utilization nan",
            "error: --gpu-memory-utilization: nan is out of range; give a number above 0 and at most 1",
        ),
        ("serve -tp 2", "error: -tp: tensor parallelism is not in this version; leave it out, or at 1"),
        ("serve --enable-lora", "error: --enable-lora: LoRA adapters are not in this version; leave it out"),
        (
            "serve --dtype int3",
            "error: --dtype: 'int3' is not known; give one of auto, float32, float16, bfloat16",
        ),
        (
            "serve --dtype bfloat61",
            "error: --dtype: 'bfloat61' is not known (did you mean bfloat16?); give one of auto, float32, float16, bfloat16",
        ),
        (
            "serve --hf-overrides {",
            "error: --hf-overrides: '{' is not JSON (EOF while parsing an object at line 1 column 1); give a JSON object such as '{\"key\": 1}'",
        ),
        (
            "serve --hf-overrides [1]",
            "error: --hf-overrides: '[1]' is JSON but no object; give a JSON object such as '{\"key\": 1}'",
        ),
        ("serve --port.x 1", "error: --port.x: takes no keys: --port is no JSON flag"),
        ("serve --no-port", "error: --no-port: --port is no switch; it takes a value"),
        (
            "serve --enable-prefix-caching=maybe",
            "error: --enable-prefix-caching: 'maybe' is neither true nor false",
        ),
        ("serve A B", "error: B: one word too many: pallium serve has 'A' already; quote a name with spaces"),
        ("serve A --model B", "error: --model: 'B' and the word 'A' name two models; give one"),
        (
            "serve --root-path v1",
            "error: --root-path: 'v1' is no path; give one that starts with /, such as /v1",
        ),
        (
            "serve --middleware x",
            "error: --middleware: is not supported; it names Python code; put a proxy in front of the server",
        ),
        (
            "serve --device tpu",
            "error: --device: 'tpu' is not supported; no backend here runs on it; use wgpu for a device with Vulkan, Metal or DX12, else cpu",
        ),
        (
            "serve --device cpu:1",
            "error: --device: 'cpu:1' is not a device; give one of auto, cpu, cuda, rocm, wgpu, null, with an index as in cuda:1 if wanted",
        ),
        (
            "serve --max-num-seqs 64 --max-num-batched-tokens 32",
            "error: --max-num-batched-tokens: 32 is less than --max-num-seqs 64: each running request needs a token a step",
        ),
        (
            "serve --cudagraph-capture-sizes 1 x",
            "error: --cudagraph-capture-sizes: 'x' is no row count; give whole numbers from 1, such as 1 2 4 8",
        ),
        (
            "serve --num-prompts 3",
            "error: --num-prompts: is a flag of pallium bench throughput, not of pallium serve",
        ),
        ("pull", "error: pallium pull: needs a model, such as pallium pull Qwen/Qwen3-0.6B"),
        (
            "completions",
            "error: pallium completions: needs a shell; give one of bash, zsh, fish, powershell, elvish",
        ),
        (
            "run-batch -i x",
            "error: pallium run-batch: batches from files are not in this version; send them to a server",
        ),
        ("srve M", "error: srve: unknown command; did you mean pallium serve?"),
        (
            "Qwen/Qwen3-0.6B",
            "error: Qwen/Qwen3-0.6B: unknown command; to serve a model: pallium serve Qwen/Qwen3-0.6B",
        ),
        (
            "bench latncy",
            "error: bench latncy: unknown bench; did you mean bench latency? there are latency, throughput, serve, startup, make-checkpoint",
        ),
        (
            "chat M --url http://x/v1",
            "error: MODEL: 'M' runs in this process, and --url or --model-name asks a server; give one of them",
        ),
        (
            "chat --url localhost",
            "error: --url: 'localhost' is no URL; give one such as http://localhost:8000/v1",
        ),
        ("bench serve --dataset-name sharegpt", "error: --dataset-path: is missing; sharegpt reads a file"),
        ("bench serve --goodput ttft", "error: --goodput: 'ttft' is no pair; give key:value"),
        (
            "serve --config /does/not/exist.yaml",
            "error: --config: /does/not/exist.yaml: No such file or directory (os error 2)",
        ),
    ];
    for (text, wanted) in cases {
        assert_eq!(error(text), wanted, "{text}");
    }
}

#[test]
fn the_nearest_right_flag() {
    let cases = [
        ("--max-modle-len", "--max-model-len"),
        ("--max-len", "--max-model-len"),
        ("--max-model-length", "--max-model-len"),
        ("--gpu-memory-utilisation", "--gpu-memory-utilization"),
        ("--tensor-parallel", "--tensor-parallel-size"),
        ("--prot", "--port"),
        ("--no-enable-prefix-cachng", "--no-enable-prefix-caching"),
        ("--served-name", "--served-model-name"),
        ("--chat-templat", "--chat-template"),
        ("--thread", "--threads"),
    ];
    for (wrong, right) in cases {
        let message = error(&format!("serve {wrong} 1"));
        assert_eq!(message, format!("error: {wrong}: unknown flag; did you mean {right}?"));
    }
    let far = error("serve --xyzzy 1");
    assert_eq!(far, "error: --xyzzy: unknown flag; pallium serve --help=all lists them");
}

#[test]
fn errors_name_where_the_value_is_from() {
    let from_env = with_env(&["serve"], &[("PALLIUM_MAX_MODEL_LEN", "12q")]).unwrap_err().to_string();
    assert!(from_env.starts_with("error: PALLIUM_MAX_MODEL_LEN: '12q' is not a number"), "{from_env}");
    assert!(with_env(&["serve", "--port", "1"], &[("PALLIUM_PORT", "x")]).is_ok(), "the line wins unseen");

    let path = std::env::temp_dir().join(format!("pallium-errors-{}.yaml", std::process::id()));
    let name = path.to_str().unwrap().to_owned();
    let cases = [
        (
            "port: x\n",
            format!("error: {name}: port: 'x' is not a number; give a whole number from 0 to 65535"),
        ),
        ("prot: 1\n", format!("error: {name}: prot: unknown flag; did you mean --port?")),
        ("port: [1, 2]\n", format!("error: {name}: port: takes one value")),
        (
            "middleware: [x]\n",
            format!(
                "error: {name}: middleware: is not supported; it names Python code; put a proxy in front of the server"
            ),
        ),
        ("config: y.yaml\n", format!("error: {name}: config: a file of flags cannot name another")),
        ("- 1\n", format!("error: --config: {name} is no mapping; write lines such as `max-model-len: 8k`")),
    ];
    for (text, wanted) in cases {
        std::fs::write(&path, text).unwrap();
        assert_eq!(error(&format!("serve --config {name}")), wanted, "{text}");
    }
    std::fs::remove_file(&path).unwrap();
}

#[cfg(unix)]
#[test]
fn words_that_are_no_text() {
    use std::os::unix::ffi::OsStringExt as _;
    let word = OsString::from_vec(vec![b'-', b'-', 0xff]);
    let message = parse([word].into_iter(), &|_| None).unwrap_err().to_string();
    assert!(message.ends_with("is not UTF-8; command lines are text here"), "{message}");
}
