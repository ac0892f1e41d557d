//! The program itself: exit status, which stream says what, colours.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::{Command, Output};

fn pallium(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pallium")).args(words).output().expect("the program starts")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn what_is_asked_for_goes_to_standard_output() {
    for (words, wanted) in [
        (vec!["--version"], concat!("pallium ", env!("CARGO_PKG_VERSION"), "\n")),
        (vec!["--help"], "Usage: pallium COMMAND"),
        (vec!["serve", "--help=max-model-len"], "PALLIUM_MAX_MODEL_LEN"),
        (vec!["completions", "bash"], "_pallium"),
        (vec!["docs", "cli"], "# Command line"),
    ] {
        let out = pallium(&words);
        assert!(out.status.success() && out.stderr.is_empty(), "{words:?}: {out:?}");
        let said = text(&out.stdout);
        assert!(said.contains(wanted) && said.ends_with('\n'), "{words:?}: {said}");
        assert!(!said.contains('\u{1b}'), "no colours in a pipe: {words:?}");
    }
}

#[test]
fn a_wrong_line_ends_with_2_and_one_line_on_standard_error() {
    let out = pallium(&["serve", "--prot", "1"]);
    assert_eq!(out.status.code(), Some(2));
    assert_eq!(text(&out.stdout), "");
    assert_eq!(text(&out.stderr), "error: --prot: unknown flag; did you mean --port?\n");
}

#[cfg(unix)]
#[test]
fn a_reader_that_goes_away_is_no_error() {
    use std::process::Stdio;
    let mut child = Command::new(env!("CARGO_BIN_EXE_pallium"))
        .args(["docs", "cli"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success() && out.stderr.is_empty(), "{out:?}");
}
