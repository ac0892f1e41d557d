//! House rules that a compiler does not check: who depends on whom, where `unsafe` and features may stand, how
//! long things may be, what a page may link to. A breach names file and line. `tidy/rules.rs` tries each rule on
//! planted breaches; `tidy/edges.rs` holds the drawing of the crates.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "tidy/edges.rs"]
mod edges;
#[path = "tidy/rules.rs"]
mod rules;
#[path = "tidy/source.rs"]
mod source;

/// What may be longer than [`rules::FUNCTION_LINES`] or [`rules::FILE_LINES`]: file, function (`""`: the file), why.
const LONG: &[(&str, &str, &str)] = &[
    ("backend-cpu/src/reference/bind.rs", "bind", "one match: each op and the reference function it runs"),
    ("engine-core/src/backend/checked/ops.rs", "check", "one match: each op and what its operands must be"),
    ("server/src/cli/tests/errors.rs", "messages", "one table: each wrong command line and its message"),
];

#[test]
fn rules_hold() {
    let sources = source::repository();
    let mut found = rules::unexplained(&rules::long(&sources), LONG);
    found.extend(rules::module_docs(&sources));
    found.extend(rules::backend_features(&sources));
    found.extend(rules::unsafe_outside(&sources));
    found.extend(rules::unsafe_without_reason(&sources));
    found.extend(rules::unwraps(&sources));
    found.extend(rules::wire_types(&sources));
    found.extend(rules::foreign_names(&sources));
    found.extend(rules::dead_links(&sources, &|path| source::root().join(path).exists()));
    found.extend(rules::dead_names(&sources, &|path| source::root().join(path).exists()));
    assert!(found.is_empty(), "{} breaches:\n{}", found.len(), found.join("\n"));
}

#[test]
fn crates_depend_as_drawn() {
    let found = edges::breaches(&edges::of_this_workspace());
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn ci_runs_the_readme_test_command() {
    let read = |path: &str| std::fs::read_to_string(source::root().join(path)).unwrap();
    let runs = |text: &str| text.lines().any(|line| line.trim() == "cargo test");
    assert!(runs(&read("README.md")), "README.md shows `cargo test` on a line of its own");
    assert!(runs(&read(".ci/run")), ".ci/run runs the same command");
}
