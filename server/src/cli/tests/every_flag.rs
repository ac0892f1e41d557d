//! Types each flag of the table in each of its spellings, on the line, in the environment and in a file.

use std::collections::BTreeSet;

use super::*;
use crate::cli::commands::{Action, COMMANDS, CommandSpec};
use crate::cli::flag::{Flag, Kind, Map, Status};
use crate::cli::lex::lex;
use crate::cli::resolve::resolve;
use crate::cli::{BenchArgs, build, build_client};

/// A value that the flag accepts for now, and is not its default if it can be helped.
fn sample(flag: &Flag) -> String {
    if let Status::Neutral { values, .. } = flag.status
        && let Some(neutral) = values.iter().rev().find(|value| !value.is_empty())
    {
        return (*neutral).to_owned();
    }
    typical(flag)
}

/// A value of the flag's kind that says something.
fn typical(flag: &Flag) -> String {
    let by_name = match flag.name {
        "config" => "/dev/null",
        "url" => "http://localhost:9/v1",
        "root-path" | "endpoint" => "/p",
        "cudagraph-capture-sizes" => "7",
        "header" | "metadata" => "a=b",
        "goodput" => "ttft:5",
        "percentile-metrics" => "ttft",
        "metric-percentiles" => "42",
        "preemption-mode" => "swap",
        "max-num-batched-tokens" => "4096",
        _ => "",
    };
    if !by_name.is_empty() {
        return by_name.to_owned();
    }
    match flag.kind {
        Kind::Bool => if flag.default == "true" { "false" } else { "true" }.to_owned(),
        Kind::Int { min, max } | Kind::Human { min, max, .. } => (min + 1).min(max).to_string(),
        Kind::HumanOrAuto { .. } => "7".to_owned(),
        Kind::Bytes => "3M".to_owned(),
        Kind::Float { min, max } | Kind::FloatAbove { min, max } => ((min + 0.5).min(max)).to_string(),
        Kind::Text | Kind::Path | Kind::List => "some".to_owned(),
        Kind::Json => "{\"cudagraph_mode\":\"FULL\"}".to_owned(),
        Kind::Choice(names) => {
            let refused = |name: &&&str| flag.refused_values.iter().any(|(values, _)| values.contains(*name));
            names.iter().rfind(|name| !refused(name)).map(|name| (*name).to_owned()).unwrap_or_default()
        }
        Kind::Device => "cpu".to_owned(),
    }
}

/// What a command cannot do without, as words before the flag in question.
fn needed(spec: &CommandSpec, flag: &Flag) -> Vec<String> {
    let mut words: Vec<String> = spec.path.iter().map(|word| (*word).to_owned()).collect();
    let mut add = |name: &str, value: &str| {
        if flag.name != name {
            words.extend([format!("--{name}"), value.to_owned()]);
        }
    };
    match spec.action {
        Action::Pull => add("model", "M"),
        Action::MakeCheckpoint => {
            add("model", "M");
            add("output", "O");
        }
        Action::BenchThroughput | Action::BenchServe if flag.name == "dataset-name" => {
            add("dataset-path", "P");
        }
        Action::BenchServe if flag.name.starts_with("ramp-up") => {
            add("ramp-up-strategy", "linear");
            add("ramp-up-start-rps", "1");
            add("ramp-up-end-rps", "2");
        }
        Action::Completions => words.push("bash".to_owned()),
        _ => {}
    }
    words
}

/// Every way to type the flag with its sample value.
fn spellings(flag: &Flag) -> Vec<Vec<String>> {
    let value = sample(flag);
    let mut ways = Vec::new();
    let mut names = vec![format!("--{}", flag.name), format!("--{}", flag.name.replace('-', "_"))];
    names.extend(flag.aliases.iter().map(|alias| (*alias).to_owned()));
    for name in names {
        if flag.kind == Kind::Bool {
            ways.push(match value.as_str() {
                "true" => vec![name.clone()],
                _ => vec![name.replacen("--", "--no-", 1)],
            });
            // A single-dash alias has no `no-` form; its `=` form follows.
            if !name.starts_with("--") && value != "true" {
                ways.pop();
            }
        } else {
            ways.push(vec![name.clone(), value.clone()]);
        }
        ways.push(vec![format!("{name}={value}")]);
    }
    ways
}

fn check_one(spec: &'static CommandSpec, flag: &'static Flag, typed: &[String]) {
    let mut line = needed(spec, flag);
    line.extend(typed.iter().cloned());
    let result = words(&line.iter().map(String::as_str).collect::<Vec<_>>());
    let about = format!("{line:?} gave {result:?}");
    let notices = |wanted: &str| {
        let said = result.as_ref().map(|i| i.notices.iter().filter(|n| n.contains(wanted)).count());
        assert_eq!(said, Ok(1), "one notice with '{wanted}': {about}");
    };
    match flag.status {
        Status::Active => assert!(result.is_ok(), "{about}"),
        Status::Neutral { values, later } => {
            if values.contains(&sample(flag).as_str()) {
                assert!(result.as_ref().is_ok_and(|i| i.notices.is_empty()), "{about}");
            } else {
                let message = result.expect_err(&about).to_string();
                assert!(message.contains(later), "'{message}' does not say '{later}'");
            }
        }
        Status::Note(why) | Status::Accepted(why) => notices(why),
        Status::Refused(instead) => {
            let message = result.expect_err(&about).to_string();
            assert!(message.contains(instead), "'{message}' does not say '{instead}'");
        }
        Status::Mapped(map) => check_mapped(map, &result, &about),
    }
}

fn check_mapped(map: Map, result: &Result<Invocation, CliError>, about: &str) {
    match (map, result) {
        (Map::To(target) | Map::Negate(target), Ok(invocation)) => {
            let said = invocation.notices.iter().filter(|n| n.contains(target)).count();
            assert_eq!(said, 1, "one notice with '{target}': {about}");
        }
        (Map::By(..), Ok(invocation)) => assert!(!invocation.notices.is_empty(), "{about}"),
        // What it maps to is not there yet and says so.
        (_, Err(error)) => assert!(error.to_string().contains("not in this version"), "{about}"),
    }
}

#[test]
fn every_flag_in_every_spelling() {
    let mut typed = 0;
    for spec in COMMANDS {
        for flag in spec.flags() {
            for way in spellings(flag) {
                // A single dash belongs to the first flag that has it: `chat -q` is --quick.
                let shadowed = flag.aliases.iter().any(|alias| {
                    way[0].split('=').next() == Some(*alias)
                        && !alias.starts_with("--")
                        && spec.short_flag(alias).is_some_and(|first| first.name != flag.name)
                });
                if !shadowed {
                    check_one(spec, flag, &way);
                    typed += 1;
                }
            }
        }
    }
    assert!(typed > 2_000, "only {typed} lines were typed");
}

#[test]
fn every_environment_twin_sets_what_the_flag_sets() {
    for spec in COMMANDS.iter().filter(|spec| spec.is_shown()) {
        for flag in spec.flags().into_iter().filter(|flag| matches!(flag.status, Status::Active)) {
            let base = needed(spec, flag);
            let base: Vec<&str> = base.iter().map(String::as_str).collect();
            let (value, name) = (sample(flag), flag.env_name().unwrap());
            let option = format!("--{}={value}", flag.name);
            let typed = words(&[base.as_slice(), &[&option]].concat()).unwrap();
            let from_env = with_env(&base, &[(name.as_str(), value.as_str())]).unwrap();
            assert_eq!(typed.command, from_env.command, "{name}={value} of {}", spec.name());
        }
    }
}

#[test]
fn every_flag_in_a_file_sets_what_the_flag_sets() {
    let path = std::env::temp_dir().join(format!("pallium-cli-{}.yaml", std::process::id()));
    let path_text = path.to_str().unwrap();
    let spec = crate::cli::commands::by_action(Action::Serve);
    for flag in spec.flags().into_iter().filter(|flag| matches!(flag.status, Status::Active)) {
        if flag.name == "config" {
            continue;
        }
        let value = sample(flag);
        let quoted = if flag.kind == Kind::Text { format!("'{value}'") } else { value.clone() };
        std::fs::write(&path, format!("{}: {quoted}\n", flag.name.replace('-', "_"))).unwrap();
        let typed = words(&["serve", &format!("--{}={value}", flag.name)]).unwrap();
        let from_file = words(&["serve", "--config", path_text]).unwrap();
        assert_eq!(typed.command, from_file.command, "{} in a file", flag.name);
    }
    std::fs::remove_file(&path).unwrap();
}

/// An active flag that no typed argument reads would be silently without effect.
#[test]
fn every_active_flag_is_read() {
    for spec in COMMANDS.iter().filter(|spec| spec.is_shown()) {
        let words: Vec<String> = needed(spec, &Flag::switch("none", ""))[spec.path.len()..].to_vec();
        let words = if spec.action == Action::Completions { Vec::new() } else { words };
        let mut flags = resolve(spec, lex(spec, &words).unwrap(), &|_| None).unwrap();
        build_all(spec.action, &mut flags);
        let read = flags.read_names();
        for flag in spec.flags().into_iter().filter(|flag| matches!(flag.status, Status::Active)) {
            // The file of flags is read before there are values.
            let known = read.contains(flag.name) || flag.name == "config";
            assert!(known, "--{} of pallium {} is active and nobody reads it", flag.name, spec.name());
        }
    }
}

fn build_all(action: Action, flags: &mut crate::cli::resolve::Resolved) {
    match action {
        Action::Serve => drop(build::serve_args(flags).unwrap()),
        Action::Chat => drop(build_client::chat_args(flags).unwrap()),
        Action::Complete => drop(build_client::session_args(flags).unwrap()),
        Action::BenchLatency => drop(build_client::bench_latency_args(flags).unwrap()),
        Action::BenchThroughput => drop(build_client::bench_throughput_args(flags).unwrap()),
        Action::BenchServe => drop(build_client::bench_serve_args(flags).unwrap()),
        Action::BenchStartup => drop(build_client::bench_startup_args(flags).unwrap()),
        Action::MakeCheckpoint => drop(build_client::make_checkpoint_args(flags).unwrap()),
        Action::Doctor => drop(build_client::doctor_args(flags).unwrap()),
        Action::Pull => drop(build_client::pull_args(flags).unwrap()),
        Action::Completions | Action::Docs | Action::Refused(_) => {}
    }
}

#[test]
fn a_flag_whose_function_comes_later_refuses_what_asks_for_it() {
    let mut refused = 0;
    for spec in COMMANDS {
        for flag in spec.flags() {
            let Status::Neutral { values, later } = flag.status else { continue };
            let value = typical(flag);
            if values.contains(&value.as_str()) || matches!(flag.kind, Kind::Choice(words) if words == values)
            {
                continue;
            }
            let mut line = needed(spec, flag);
            line.push(format!("--{}={value}", flag.name));
            let message =
                words(&line.iter().map(String::as_str).collect::<Vec<_>>()).unwrap_err().to_string();
            assert!(message.contains(later), "{line:?}: '{message}' does not say '{later}'");
            refused += 1;
        }
    }
    assert!(refused > 100, "only {refused} lines were typed");
}

/// Below its range, above it, and no number at all.
#[test]
fn every_number_has_a_range() {
    let (mut refused, mut wrong) = (0, Vec::new());
    for spec in COMMANDS {
        for flag in spec.flags().into_iter().filter(|flag| matches!(flag.status, Status::Active)) {
            let (below, above) = match flag.kind {
                Kind::Int { min, max } | Kind::Human { min, max, .. } => {
                    ((min - 1).to_string(), (max + 1).to_string())
                }
                Kind::HumanOrAuto { max, .. } => ("-2".to_owned(), (max + 1).to_string()),
                Kind::Bytes => ("-1".to_owned(), "1e40".to_owned()),
                Kind::Float { min, max } => ((min - 0.5).to_string(), (max * 2.0 + 0.5).to_string()),
                Kind::FloatAbove { min, max } => (min.to_string(), (max * 2.0 + 0.5).to_string()),
                _ => continue,
            };
            // A range without end has nothing above it.
            let values = [below, above, "many".to_owned(), "NaN".to_owned(), String::new()];
            for value in values.into_iter().filter(|value| value != "inf") {
                let mut line = needed(spec, flag);
                line.push(format!("--{}={value}", flag.name));
                let result = words(&line.iter().map(String::as_str).collect::<Vec<_>>());
                match result.map_err(|e| e.to_string()) {
                    Err(message) if message.starts_with(&format!("error: --{}: ", flag.name)) => refused += 1,
                    other => wrong.push(format!("{line:?}: {other:?}")),
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(refused > 200, "only {refused} lines were typed");
}

/// The words of issue and reference, not of the table: what scripts have in them.
#[test]
fn older_scripts_start_or_hear_why_not() {
    let starts = [
        "--rope-scaling {\"type\":\"linear\",\"factor\":2}",
        "--rope-theta 1e6",
        "--guided-decoding-backend outlines",
        "--max-seq-len-to-capture 8192",
        "--max-context-len-to-capture 8192",
        "--preemption-mode recompute",
        "--preemption-mode swap",
        "--disable-log-requests",
        "--dtype half",
        "--dtype float",
        "--enable-metrics",
        "--swap-space 4",
        "--worker-use-ray",
        "--engine-use-ray",
        "--ray-workers-use-nsight",
        "--use-v2-block-manager",
        "--num-lookahead-slots 0",
        "--scheduler-delay-factor 0.0",
        "--tokenizer-pool-size 4",
        "--tokenizer-pool-type ray",
        "--tokenizer-pool-extra-config {}",
        "--lora-extra-vocab-size 256",
        "--image-input-type pixel_values",
        "--image-token-id 32000",
        "--image-input-shape 1,3,336,336",
        "--image-feature-size 576",
        "--speculative-model M",
        "--speculative-model [ngram]",
        "--num-speculative-tokens 5",
        "--speculative-max-model-len 2048",
        "--speculative-disable-by-batch-size 4",
        "--ngram-prompt-lookup-max 4",
        "--ngram-prompt-lookup-min 1",
    ];
    for text in starts {
        let invocation = line(&format!("serve M {text}")).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(invocation.notices.len(), 1, "{text}: {:?}", invocation.notices);
    }
    let refused = [
        "--middleware a.b",
        "--qlora-adapter-name-or-path P",
        "--long-lora-scaling-factors 4",
        "--quantization-param-path P",
        "--device neuron",
        "--device tpu",
        "--device xpu",
    ];
    for text in refused {
        let message = error(&format!("serve M {text}"));
        let flag = text.split(' ').next().unwrap();
        assert!(message.contains(flag), "{message}");
        assert!(message.contains(';'), "says what to use instead: {message}");
    }
}

/// Every flag that the reference marks to be kept is in the table and is not refused by name.
#[test]
fn every_flag_of_the_reference_parses() {
    let found = ["../../shared", "../../../shared"].iter().find_map(|shared| {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(root.join(shared).join("reference/vllm.md")).ok()
    });
    let Some(reference) = found else {
        println!("left out: shared/reference/vllm.md is not here, so its flags are not compared");
        return;
    };
    let serve = crate::cli::commands::by_action(Action::Serve);
    let names = kept_flags(&reference);
    assert!(names.len() > 150, "only {} flags found in the reference", names.len());
    for name in names {
        let flag = serve.flag(&name).unwrap_or_else(|| panic!("--{name} is not in the table"));
        assert!(!matches!(flag.status, Status::Refused(_)), "--{name} is refused");
    }
}

/// Names in rows of sections 2.1 to 2.5 whose last cell begins with K or k.
fn kept_flags(reference: &str) -> BTreeSet<String> {
    let from = reference.find("### 2.1").unwrap();
    let to = reference.find("### 2.6").unwrap();
    let mut names = BTreeSet::new();
    for row in reference[from..to].lines().filter(|row| row.starts_with("| ")) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let (Some(first), Some(last)) = (cells.first(), cells.last()) else { continue };
        if !last.starts_with(['K', 'k']) || last.contains("blank") {
            continue;
        }
        let flags = first.split(|c: char| !(c.is_ascii_alphanumeric() || "-*".contains(c)));
        for flag in flags.filter_map(|word| word.strip_prefix("--")) {
            // `--no-` and `--sleep-*` stand for others.
            if !flag.is_empty() && !flag.ends_with('*') && !flag.ends_with('-') && flag != "scheduler-cls" {
                names.insert(flag.to_owned());
            }
        }
    }
    names
}

#[test]
fn names_and_aliases_are_unique_within_a_group_of_commands() {
    for spec in COMMANDS {
        let mut seen = BTreeSet::new();
        for group in spec.all_groups() {
            let mut own = BTreeSet::new();
            for flag in group.flags {
                assert!(own.insert(flag.name), "--{} stands twice in {}", flag.name, group.name);
                assert!(!flag.is_current() || !flag.help.is_empty(), "--{} has no help", flag.name);
                let shadowed = !seen.insert(flag.name);
                let is_server = spec.action == Action::Serve;
                assert!(!(shadowed && is_server), "--{} stands twice in serve", flag.name);
            }
        }
    }
}

/// No words make the parser panic: whatever is read as one kind is of that kind.
#[test]
fn random_lines_end_in_a_result() {
    let mut state = 7_u64;
    let mut draw = move |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % bound
    };
    let values = [
        "",
        "0",
        "-1",
        "1",
        "auto",
        "true",
        "False",
        "32k",
        "1.5G",
        "{}",
        "{\"a\":1}",
        "[1,2]",
        "[]",
        "null",
        "é",
        "cuda:1",
        "99999999999999999999999999999999999999999",
        "nan",
        "inf",
        "a=b",
        "--",
        "-",
        "=",
        "---x",
        "-x",
        "--x.y",
        "k",
        "1e400",
        "{",
        "\"",
    ];
    for _ in 0..20_000 {
        let spec = &COMMANDS[draw(COMMANDS.len())];
        let mut line: Vec<String> = spec.path.iter().map(|word| (*word).to_owned()).collect();
        let flags = spec.flags();
        for _ in 0..draw(5) {
            if !flags.is_empty() && draw(4) > 0 {
                let flag = flags[draw(flags.len())];
                let tail = ["", ".k", ".k+", "+", ".", "=", "=1"][draw(7)];
                line.push(format!("--{}{tail}", flag.name));
            }
            line.push(values[draw(values.len())].to_owned());
        }
        if line.iter().any(|word| word.starts_with("--config")) {
            continue;
        }
        let result = words(&line.iter().map(String::as_str).collect::<Vec<_>>());
        if let Err(error) = result {
            assert!(!error.message.is_empty(), "{line:?}");
        }
    }
}

#[test]
fn a_server_that_bench_startup_starts_has_the_same_flags() {
    let mut given = 0;
    for flag in crate::cli::flags::ENGINE.iter().flat_map(|group| group.flags.iter()) {
        if !matches!(flag.status, Status::Active | Status::Neutral { .. }) {
            continue;
        }
        for way in spellings(flag) {
            let line = ["bench", "startup"].into_iter().chain(way.iter().map(String::as_str));
            let parsed = words(&line.collect::<Vec<_>>()).map(|i| i.command);
            let Ok(Command::Bench(args)) = parsed else {
                // What comes later refuses every value.
                assert!(matches!(flag.status, Status::Neutral { .. }), "{way:?} gave {parsed:?}");
                continue;
            };
            let BenchArgs::Startup(args) = *args else { panic!("{way:?} is of another bench") };
            let variables: Vec<(&str, &str)> =
                args.serve_variables.iter().map(|(name, value)| (name.as_str(), value.expose())).collect();
            assert_eq!(variables.len(), 1, "{way:?}");
            let served = serve_of(with_env(&["serve"], &variables));
            assert_eq!(
                (served.engine, served.logging),
                (args.engine, args.logging),
                "{way:?}: {variables:?}"
            );
            given += 1;
        }
    }
    assert!(given > 100, "{given}");
}
