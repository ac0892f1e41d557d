//! Spellings, precedence, commands.

use std::path::PathBuf;

use engine_core::DType;
use serde_json::json;

use super::*;
use crate::cli::*;

#[test]
fn defaults_of_the_table_are_those_of_the_types() {
    assert_eq!(serve("serve"), ServeArgs::default());
}

#[test]
fn three_forms_are_one_command() {
    let by_flag = serve("--model M --port 1");
    assert_eq!(by_flag, serve("serve --model M --port 1"));
    assert_eq!(by_flag, serve("serve M --port 1"));
    assert_eq!(by_flag, serve("serve --port 1 M"));
    assert_eq!(by_flag, serve("serve --port 1 -- M"));
    assert_eq!(by_flag.engine.model.as_deref(), Some("M"));
    assert_eq!(by_flag.frontend.port, 1);
}

#[test]
fn numbers_a_person_writes() {
    let cases = [
        ("8192", Some(MaxModelLen::Tokens(8192))),
        ("32k", Some(MaxModelLen::Tokens(32_000))),
        ("32K", Some(MaxModelLen::Tokens(32_768))),
        ("1.5k", Some(MaxModelLen::Tokens(1_500))),
        ("0.25M", Some(MaxModelLen::Tokens(262_144))),
        ("auto", Some(MaxModelLen::Auto)),
        ("-1", Some(MaxModelLen::Auto)),
    ];
    for (text, wanted) in cases {
        assert_eq!(serve(&format!("serve --max-model-len {text}")).engine.max_model_len, wanted, "{text}");
    }
    for (text, wanted) in [("4G", 4 << 30), ("4g", 4_000_000_000), ("4GiB", 4 << 30), ("4GB", 4_000_000_000)]
    {
        let args = serve(&format!("serve --kv-cache-memory-bytes {text}"));
        assert_eq!(args.engine.kv_cache_memory_bytes, Some(wanted), "{text}");
    }
}

#[test]
fn json_whole_and_dotted() {
    let args = serve_of(words(&["serve", "--hf-overrides", r#"{"rope_theta": 32k, "a": "32k"}"#]));
    assert_eq!(json!(args.engine.hf_overrides), json!({"rope_theta": 32_000, "a": "32k"}));
    let args =
        serve("serve --hf-overrides.text_config.rope_theta 1e6 --hf_overrides.name=x --hf-overrides.l+ 1,2k");
    let wanted = json!({"text_config": {"rope_theta": 1e6}, "name": "x", "l": [1, 2_000]});
    assert_eq!(json!(args.engine.hf_overrides), wanted);
    let args = serve("serve --rope-theta 500000 --hf-overrides.rope_theta 7");
    assert_eq!(json!(args.engine.hf_overrides), json!({"rope_theta": 7}), "the current name wins");
}

#[test]
fn switches() {
    let caching = |text: &str| serve(&format!("serve {text}")).engine.enable_prefix_caching;
    assert_eq!(caching(""), None);
    assert_eq!(caching("--enable-prefix-caching"), Some(true));
    assert_eq!(caching("--no-enable-prefix-caching"), Some(false));
    assert_eq!(caching("--no_enable_prefix_caching"), Some(false));
    assert_eq!(caching("--enable-prefix-caching=False"), Some(false));
    assert_eq!(caching("--enable-prefix-caching False"), Some(false));
    assert_eq!(
        caching("--no-enable-prefix-caching --enable-prefix-caching"),
        Some(true),
        "the last one wins"
    );
}

#[test]
fn lists() {
    let keys = |args: ServeArgs| -> Vec<String> {
        args.frontend.api_key.iter().map(|key| key.expose().to_owned()).collect()
    };
    assert_eq!(keys(serve("serve M --api-key a b")), ["a", "b"]);
    assert_eq!(keys(serve("serve M --api-key a --api-key=b")), ["a", "b"]);
    assert_eq!(keys(serve(r#"serve M --api-key ["a","b"]"#)), ["a", "b"]);
    assert_eq!(keys(serve_of(with_env(&["serve"], &[("PALLIUM_API_KEY", "a, b")]))), ["a", "b"]);
    assert_eq!(serve(r#"serve --allowed-origins ["*"]"#).frontend.allowed_origins, ["*"]);
    assert_eq!(serve("serve --allowed-methods []").frontend.allowed_methods, Vec::<String>::new());
    let swallowed = line("serve --api-key a M").unwrap();
    assert!(swallowed.notices[0].contains("put MODEL before"), "{:?}", swallowed.notices);
}

#[test]
fn single_dash_names() {
    for text in ["serve -tp 1 -pp=1 -dp 1 -q none -n1 -r 0", "serve -asc 1 -dpn 0"] {
        assert!(line(text).is_ok(), "{text}: {:?}", line(text));
    }
    assert!(serve("serve -O0").engine.enforce_eager);
    assert!(!serve("serve -O3").engine.enforce_eager);
    assert!(serve("serve -cc.cudagraph_mode=NONE").engine.enforce_eager);
    assert_eq!(serve("serve -cc.cudagraph_capture_sizes [1,2]").engine.cudagraph_capture_sizes, [1, 2]);
}

#[test]
fn the_line_wins_over_the_environment_over_the_file() {
    let path = std::env::temp_dir().join(format!("pallium-precedence-{}.yaml", std::process::id()));
    let text = "port: 1\nhost: file\nmax_model_len: 4k\nserved-model-name: [a, b]\nno-enable-prefix-caching: true\n\
                hf-overrides: {x: 1, y: 2}\ngpu-memory-utilization: 0.5\nroot-path: null\n";
    std::fs::write(&path, text).unwrap();
    let path_text = path.to_str().unwrap();
    let variables =
        [("PALLIUM_PORT", "2"), ("PALLIUM_HOST", "env"), ("PALLIUM_CONFIG", path_text), ("PALLIUM_UDS", "")];
    let args = serve_of(with_env(&["serve", "--port", "3", "--hf-overrides.y", "3"], &variables));
    std::fs::remove_file(&path).unwrap();
    assert_eq!(args.frontend.port, 3);
    assert_eq!(args.frontend.host.as_deref(), Some("env"));
    assert_eq!(args.frontend.uds, None, "an empty variable is none");
    assert_eq!(args.engine.max_model_len, Some(MaxModelLen::Tokens(4000)));
    assert_eq!(args.engine.served_model_name, ["a", "b"]);
    assert_eq!(args.engine.enable_prefix_caching, Some(false));
    assert_eq!(args.engine.gpu_memory_utilization, Some(0.5));
    assert_eq!(json!(args.engine.hf_overrides), json!({"x": 1, "y": 3}));
}

#[test]
fn kubernetes_and_foreign_variables() {
    let kubernetes = with_env(&["serve"], &[("PALLIUM_PORT", "tcp://10.0.0.1:8000")]).unwrap();
    assert!(kubernetes.notices[0].contains("Kubernetes"));
    assert_eq!(serve_of(Ok(kubernetes)).frontend.port, 8000);
    let open = with_env(&["serve"], &[("VLLM_API_KEY", "k")]).unwrap_err().to_string();
    assert!(open.contains("PALLIUM_API_KEY"), "{open}");
    assert!(with_env(&["serve", "--api-key", "k"], &[("VLLM_API_KEY", "k")]).is_ok());
    let empty = with_env(&["serve"], &[("PALLIUM_API_KEY", "")]).unwrap_err().to_string();
    assert!(empty.starts_with("error: PALLIUM_API_KEY: a key is empty"), "{empty}");
    let level = with_env(&["serve"], &[("VLLM_LOGGING_LEVEL", "DEBUG")]).unwrap();
    assert!(level.notices[0].contains("PALLIUM_LOG_LEVEL"));
}

#[test]
fn misspelt_twins_are_noticed() {
    let names = [
        "PATH",
        "PALLIUM_PORT",
        "PALLIUM_PORT_8000_TCP",
        "PALLIUM_SERVICE_HOST",
        "PALLIUM_CUDA_ARCHS",
        "PALLIUM_NUM_PROMPTS",
        "PALLIUM_MAX_MODLE_LEN",
        "PALLIUM_XYZZY",
    ];
    assert_eq!(
        unknown_variables(names.into_iter().map(str::to_owned)),
        [
            "PALLIUM_MAX_MODLE_LEN: no flag has this twin; did you mean PALLIUM_MAX_MODEL_LEN?",
            "PALLIUM_XYZZY: no flag has this twin; it is without effect",
        ]
    );
}

#[test]
fn typed_values() {
    let args = serve(
        "serve M --dtype half --device cuda:1 --seed 18446744073709551615 --max-logprobs -1 \
         --generation-config vllm --load-format dummy --scheduling-policy PRIORITY --threads 3 --hf-token \
         --kv-cache-dtype bf16 --root-path /v/ --log-level WARN --log-format json --uds /s",
    );
    assert_eq!(args.engine.dtype, Some(DType::F16));
    assert_eq!(args.engine.device, DeviceChoice { kind: DeviceKind::Cuda, index: Some(1) });
    assert_eq!(args.engine.seed, u64::MAX);
    assert_eq!(args.engine.max_logprobs, None);
    assert_eq!(args.engine.generation_config, GenerationConfig::Neutral);
    assert_eq!(args.engine.load_format, LoadFormat::Dummy);
    assert_eq!(args.engine.scheduling_policy, SchedulingPolicy::Priority);
    assert_eq!(args.engine.threads, Some(3));
    assert_eq!(args.engine.hf_token, None, "the stored one");
    assert_eq!(args.engine.kv_cache_dtype, Some(DType::Bf16));
    assert_eq!(args.frontend.root_path, "/v");
    assert_eq!(args.frontend.uds, Some(PathBuf::from("/s")));
    assert_eq!(args.logging, LoggingArgs { level: LogLevel::Warning, format: LogFormat::Json });
}

#[test]
fn printed_arguments_show_no_key() {
    let shown = format!("{:?}", serve("serve --api-key hush --hf-token hush"));
    assert!(!shown.contains("hush"), "{shown}");
}

#[test]
fn the_cpu_has_no_memory_utilization() {
    assert!(EngineArgs::default().notices_on_cpu().is_empty());
    let args = serve("serve --device-memory-utilization 0.5").engine;
    assert!(args.notices_on_cpu()[0].contains("--gpu-memory-utilization"));
}

#[test]
fn chat_and_complete_find_their_model() {
    let target = |text: &str| match line(text).unwrap().command {
        Command::Chat(args) => args.session.target,
        Command::Complete(args) => args.target,
        other => panic!("{other:?}"),
    };
    let here = |model: Option<&str>| {
        let model = model.map(str::to_owned);
        Target::InProcess(Box::new(EngineArgs { model, ..EngineArgs::default() }))
    };
    let server = |url: &str, name: Option<&str>| Target::Server {
        url: url.to_owned(),
        api_key: None,
        model_name: name.map(str::to_owned),
    };
    assert_eq!(target("chat"), here(None));
    assert_eq!(target("chat M"), here(Some("M")));
    assert_eq!(target("chat --url http://h:1/v1/"), server("http://h:1/v1", None));
    assert_eq!(target("complete --model-name N"), server("http://localhost:8000/v1", Some("N")));
    match line("chat M -q Hi --temperature 0 --stats").unwrap().command {
        Command::Chat(args) => {
            assert_eq!((args.session.quick.as_deref(), args.session.stats), (Some("Hi"), true));
            assert_eq!(args.session.sampling.temperature, Some(0.0));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn benches() {
    let bench = |text: &str| match line(&format!("bench {text}")).unwrap().command {
        Command::Bench(args) => *args,
        other => panic!("{other:?}"),
    };
    match bench("latency M --input-len 8 --batch-size 2") {
        BenchArgs::Latency(args) => {
            assert_eq!((args.input_len, args.output_len, args.batch_size, args.num_iters), (8, 128, 2, 30));
            assert_eq!(args.engine.model.as_deref(), Some("M"));
        }
        other => panic!("{other:?}"),
    }
    match bench("throughput --random-input-len 5 --load-format dummy") {
        BenchArgs::Throughput(args) => {
            assert_eq!((args.workload.input_len, args.workload.output_len), (Some(5), Some(128)));
            assert_eq!(args.workload.num_prompts, 1000);
        }
        other => panic!("{other:?}"),
    }
    match bench(
        "serve --backend vllm --port 9 --request-rate inf --goodput ttft:5 e2el:7 --percentile-metrics ttft,itl",
    ) {
        BenchArgs::Serve(args) => {
            assert_eq!(
                (args.base_url.as_str(), args.endpoint.as_str()),
                ("http://127.0.0.1:9", "/v1/completions")
            );
            assert!(args.request_rate.is_infinite());
            assert_eq!(args.goodput, [("ttft".to_owned(), 5.0), ("e2el".to_owned(), 7.0)]);
            assert_eq!(args.percentile_metrics, ["ttft", "itl"]);
        }
        other => panic!("{other:?}"),
    }
    match bench("make-checkpoint shape -o out --dtype bfloat16 --max-shard-size 1GiB") {
        BenchArgs::MakeCheckpoint(args) => {
            assert_eq!(args.model, PathBuf::from("shape"));
            assert_eq!((args.dtype, args.max_shard_bytes), (Some(DType::Bf16), 1 << 30));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn small_commands() {
    assert!(matches!(line("--version").unwrap().command, Command::Version));
    assert!(matches!(line("serve --version").unwrap().command, Command::Version));
    assert!(matches!(line("").unwrap().command, Command::Help(_)));
    assert!(matches!(line("serve --no-such --help").unwrap().command, Command::Help(_)));
    assert!(matches!(line("collect-env").unwrap().command, Command::Doctor(_)));
    match line("pull M --include *.json tok* --revision r").unwrap().command {
        Command::Pull(args) => {
            assert_eq!(args.include, ["*.json", "tok*"]);
            assert_eq!((args.model.as_str(), args.revision.as_deref()), ("M", Some("r")));
        }
        other => panic!("{other:?}"),
    }
    match line("completions zsh").unwrap().command {
        Command::Completions(args) => assert_eq!(args.shell, Shell::Zsh),
        other => panic!("{other:?}"),
    }
}
