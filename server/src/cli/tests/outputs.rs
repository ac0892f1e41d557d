//! Help, completions, docs/cli.md, the start-up table.

use super::*;
use crate::cli::commands::COMMANDS;
use crate::cli::progress::Progress;
use crate::cli::startup::{Address, StartupTable, grouped, human_size};
use crate::cli::{Choice as _, LogFormat, Shell, completions, docs};

fn help(text: &str) -> String {
    match line(text).expect("help").command {
        Command::Help(text) => text.render(false).to_owned(),
        other => panic!("help was asked for, not {other:?}"),
    }
}

#[test]
fn committed_docs_are_those_of_the_table() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md");
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == docs::markdown(),
        "docs/cli.md differs from the flag table; run: cargo run -p server -- docs cli > docs/cli.md"
    );
}

#[test]
fn help_shows_groups_flags_and_all() {
    let short = help("serve --help");
    assert!(short.contains("--max-model-len") && !short.contains("--mamba-backend"), "{short}");
    let all = help("serve --help=all");
    for spec in COMMANDS.iter().filter(|spec| spec.path == ["serve"]) {
        for flag in spec.flags().into_iter().filter(|flag| flag.is_current()) {
            assert!(all.contains(&format!("--{}", flag.name)), "--help=all lacks --{}", flag.name);
        }
    }
    assert!(!all.contains("--swap-space"), "older names are not advertised");
    let group = help("serve --help=cache");
    assert!(group.contains("--block-size") && !group.contains("--kv-cache-metrics"), "{group}");
    let flag = help("serve --help=max_model_len");
    assert!(flag.contains("PALLIUM_MAX_MODEL_LEN") && !flag.contains("--tokenizer"), "{flag}");
    assert!(help("serve --help=swap-space").contains("older name"));
    let wrong = error("serve --help=cahce");
    assert!(wrong.contains("no group or flag has this name"), "{wrong}");
    for spec in COMMANDS.iter().filter(|spec| spec.is_shown()) {
        assert!(help("--help").contains(spec.path[0]), "{}", spec.name());
        assert!(help(&format!("{} --help", spec.name())).contains(spec.about));
        assert_eq!(help(&format!("{} --help", spec.name())), help(&format!("help {}", spec.name())));
    }
    assert!(help("bench").contains("make-checkpoint"));
}

#[test]
fn help_has_colours_only_when_asked() {
    let Command::Help(text) = line("serve --help").unwrap().command else { panic!("no help") };
    assert!(!text.render(false).contains('\u{1b}'));
    assert!(text.render(true).contains('\u{1b}'));
    let error = line("serve --prot 1").unwrap_err();
    assert!(!error.render(false).contains('\u{1b}') && error.render(true).contains('\u{1b}'));
}

#[test]
fn completions_know_commands_and_flags() {
    completions::command_tree().debug_assert();
    for shell in Shell::NAMES {
        let script = completions::script(Shell::from_name(shell).unwrap());
        // clap_complete offers a flag's words in these shells only.
        let words = ["bash", "zsh", "fish"].contains(shell).then_some("bfloat16");
        for word in ["make-checkpoint", "max-model-len", "no-enable-prefix-caching"].into_iter().chain(words)
        {
            assert!(script.contains(word), "completions for {shell} lack {word}");
        }
    }
}

#[test]
fn the_startup_table() {
    let table = StartupTable {
        model: "it's".to_owned(),
        source: Some("/models/x".to_owned()),
        device: "cpu (2 threads, avx512)".to_owned(),
        dtype: "bfloat16".to_owned(),
        weight_bytes: 2_500_000_000,
        kv_tokens: 123_456,
        kv_bytes: 1 << 30,
        max_model_len: 8_192,
        max_num_seqs: 128,
        address: Address::Url("http://localhost:8000".to_owned()),
        needs_key: false,
        has_chat: true,
        startup_s: 0.512,
    };
    let wanted = r#"  model     it's
  from      /models/x
  device    cpu (2 threads, avx512)
  dtype     bfloat16
  weights   2.33 GiB
  KV cache  123,456 tokens, 1.00 GiB
  context   8,192 tokens
  fits      15.1 requests of full length; at most 128 run at once
  address   http://localhost:8000
  ready in  0.51 s

curl http://localhost:8000/v1/chat/completions -H 'Content-Type: application/json' -d '{"model": "it'\''s", "messages": [{"role": "user", "content": "Hello"}]}'
"#;
    assert_eq!(table.render(false), wanted);
    assert!(table.render(true).contains("\u{1b}[1mmodel   \u{1b}[0m  it's"));
    let socket = StartupTable {
        address: Address::Socket("/run/p.sock".into()),
        needs_key: true,
        has_chat: false,
        ..table
    };
    let curl = socket.curl_line();
    assert!(curl.starts_with("curl --unix-socket '/run/p.sock' http://localhost/v1/completions -H \"Authorization: Bearer $PALLIUM_API_KEY\""), "{curl}");
    assert!(curl.contains("\"prompt\""));
}

#[test]
fn progress_is_silent_beside_json_logs() {
    let bars = [
        Progress::bytes("weights", 0, LogFormat::Json),
        Progress::bytes("weights", 10, LogFormat::Json),
        Progress::steps("requests", 3, LogFormat::Json),
        Progress::hidden(),
    ];
    for bar in bars {
        assert!(!bar.is_shown());
        bar.clone().advance(1);
        bar.set(2);
        bar.line("a line");
        bar.finish();
    }
}

#[test]
fn sizes_and_numbers_for_people() {
    for (bytes, wanted) in [
        (0, "0 B"),
        (1_023, "1023 B"),
        (1_024, "1.00 KiB"),
        (1_536 << 10, "1.50 MiB"),
        (10 << 20, "10.0 MiB"),
        (1_023 << 10, "1.00 MiB"),
        (123 << 30, "123 GiB"),
        (u64::MAX, "16.0 EiB"),
    ] {
        assert_eq!(human_size(bytes), wanted, "{bytes}");
    }
    for (number, wanted) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
        assert_eq!(grouped(number), wanted);
    }
}
