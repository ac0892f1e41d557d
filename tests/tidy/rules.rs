//! The rules. Each takes sources and gives one line per breach, so that each is tried on a planted one below.

use std::path::Path;

use crate::source::{Source, test_files};

/// Longest function, in lines from `fn` to its closing brace.
pub const FUNCTION_LINES: usize = 70;
/// Longest source file, in lines.
pub const FILE_LINES: usize = 800;

/// `cfg(feature = ..)` on a backend stands nowhere else.
/// (the conformance cases need the reference, which is in the CPU backend).
const FEATURE_FILES: [&str; 7] = [
    "server/src/device.rs",
    "kernels/src/lib.rs",
    "tests/conformance/devices.rs",
    "tests/common/lib.rs",
    "tests/common/devices.rs",
    "tests/models/families.rs",
    "tests/models/stories260k.rs",
];
const BACKENDS: [&str; 4] = ["cpu", "cuda", "rocm", "wgpu"];
/// The one module of engine-core and server with `unsafe`.
const MAPS_FILES: &str = "engine-core/src/loader/mmap.rs";

/// Something longer than it should be: its file, and the function's name or `""` for the file itself.
#[derive(Debug, PartialEq, Eq)]
pub struct Long {
    pub path: String,
    pub function: String,
    pub lines: usize,
}

/// Functions and files over their limits.
pub fn long(sources: &[Source]) -> Vec<Long> {
    let mut found = Vec::new();
    for s in sources {
        let lines = s.text.lines().count();
        let is_source = [".rs", ".py", ".cu", ".cuh", ".wgsl", ".sh"].iter().any(|e| s.path.ends_with(e));
        if is_source && lines > FILE_LINES {
            found.push(Long { path: s.path.clone(), function: String::new(), lines });
        }
        for (function, lines) in functions(s) {
            if lines > FUNCTION_LINES {
                found.push(Long { path: s.path.clone(), function, lines });
            }
        }
    }
    found
}

/// What is long without a reason, and reasons for what is no longer long. `reasons` holds path, function, why.
pub fn unexplained(long: &[Long], reasons: &[(&str, &str, &str)]) -> Vec<String> {
    let has = |l: &Long| reasons.iter().any(|r| r.0 == l.path && r.1 == l.function && !r.2.is_empty());
    let unexplained = long.iter().filter(|l| !has(l));
    let stale = reasons.iter().filter(|r| !long.iter().any(|l| l.path == r.0 && l.function == r.1));
    unexplained
        .map(|l| {
            format!(
                "{} {}: {} lines; split it, or give a reason in tests/tidy.rs",
                l.path, l.function, l.lines
            )
        })
        .chain(stale.map(|r| format!("{} {}: no longer long; drop it from tests/tidy.rs", r.0, r.1)))
        .collect()
}

/// A file's first words, attributes aside, say what it is about.
pub fn module_docs(sources: &[Source]) -> Vec<String> {
    let first = |s: &Source| s.text.lines().find(|l| !l.starts_with("#![")).unwrap_or("").to_owned();
    let missing = sources.iter().filter(|s| s.is_rust() && !first(s).starts_with("//!"));
    missing.map(|s| format!("{}:1: starts without a `//!` doc", s.path)).collect()
}

/// Only `device.rs`, and its twin among the tests, knows which backends are compiled in.
pub fn backend_features(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for s in sources.iter().filter(|s| s.is_rust() && !FEATURE_FILES.contains(&&*s.path)) {
        for at in s.words("feature") {
            let names_backend = s.text[at..]
                .strip_prefix("feature = \"")
                .and_then(|rest| rest.split('"').next())
                .is_some_and(|name| BACKENDS.contains(&name));
            if names_backend {
                found.push(format!("{}:{}: a backend's feature outside device.rs", s.path, s.line_of(at)));
            }
        }
    }
    found
}

/// No `unsafe` in engine-core and server but where files are mapped.
pub fn unsafe_outside(sources: &[Source]) -> Vec<String> {
    let safe_crate = |path: &str| path.starts_with("engine-core/") || path.starts_with("server/");
    let mut found = Vec::new();
    for s in sources.iter().filter(|s| safe_crate(&s.path) && s.path != MAPS_FILES) {
        found.extend(s.words("unsafe").map(|at| format!("{}:{}: `unsafe` here", s.path, s.line_of(at))));
    }
    found
}

/// Each `unsafe` block and impl has a `SAFETY:` comment on it, on its statement, or on the line above.
pub fn unsafe_without_reason(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for s in sources {
        let lines: Vec<&str> = s.text.lines().collect();
        for at in s.words("unsafe") {
            let next = s.code[at + "unsafe".len()..].trim_start();
            let line = s.line_of(at);
            if (next.starts_with('{') || next.starts_with("impl")) && !has_safety(&lines, line) {
                found.push(format!("{}:{line}: `unsafe` without a SAFETY comment", s.path));
            }
        }
    }
    found
}

/// Outside tests: `unwrap` and `expect` only under an `#[expect]` with a reason, never under an `#[allow]`.
pub fn unwraps(sources: &[Source]) -> Vec<String> {
    let tests = test_files(sources);
    let mut found = Vec::new();
    for s in sources.iter().filter(|s| s.is_rust() && !tests.contains(&s.path)) {
        let mut excused = s.test_spans();
        let lint = |at: usize| s.code[at..].split(']').next().is_some_and(|a| a.contains("_used"));
        let reasons = s.code.match_indices("#[expect(").map(|m| m.0).filter(|&at| lint(at));
        excused.extend(reasons.map(|at| at..s.item_end(at)));
        let inside = |at: usize| excused.iter().any(|span| span.contains(&at));
        for what in [".unwrap()", ".expect("] {
            let calls = s.code.match_indices(what).map(|m| m.0).filter(|&at| !inside(at));
            found.extend(calls.map(|at| format!("{}:{}: `{what}` without #[expect]", s.path, s.line_of(at))));
        }
        for what in ["#[allow(", "#![allow("] {
            let allows = s.code.match_indices(what).map(|m| m.0).filter(|&at| lint(at) && !inside(at));
            found.extend(allows.map(|at| format!("{}:{}: allows unwrap or expect", s.path, s.line_of(at))));
        }
    }
    found
}

/// serde in engine-core is for files of a checkpoint, not for requests and answers.
pub fn wire_types(sources: &[Source]) -> Vec<String> {
    let reads_files = |path: &str| {
        ["config", "loader", "quant"].iter().any(|m| path.starts_with(&format!("engine-core/src/{m}")))
    };
    let mut found = Vec::new();
    for s in sources.iter().filter(|s| s.path.starts_with("engine-core/src/") && !reads_files(&s.path)) {
        for word in ["Serialize", "Deserialize", "serde_json"] {
            found.extend(s.words(word).map(|at| format!("{}:{}: `{word}` here", s.path, s.line_of(at))));
        }
    }
    found
}

/// Hosts of package registries and paths of some machine are no part of a repository. A lock file's own
/// `source` lines, which cargo writes and `deny.toml` checks, are.
pub fn foreign_names(sources: &[Source]) -> Vec<String> {
    // In two halves, so that this file is clean.
    let hosts = [
        ("crates", ".io"),
        ("pypi", ".org"),
        ("pythonhosted", ".org"),
        ("npmjs", ".org"),
        ("npmjs", ".com"),
        ("proxy.golang", ".org"),
        ("artifact", "ory"),
        ("Artifact", "ory"),
    ];
    let folders = [("/work", "/"), ("/home", "/"), ("/root", "/"), ("/Users", "/"), (":\\Users", "\\")];
    let mut found = Vec::new();
    for s in sources.iter().filter(|s| !s.path.ends_with("Cargo.lock")) {
        for (n, line) in s.text.lines().enumerate() {
            for name in hosts.iter().chain(&folders).map(|(a, b)| format!("{a}{b}")) {
                if names(line, &name) {
                    found.push(format!("{}:{}: names {name}", s.path, n + 1));
                }
            }
        }
    }
    found
}

/// Relative links of Markdown pages lead to something. `exists` takes a path from the repository root.
pub fn dead_links(sources: &[Source], exists: &dyn Fn(&Path) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for s in sources.iter().filter(|s| s.path.ends_with(".md")) {
        let folder = Path::new(&s.path).parent().unwrap_or(Path::new(""));
        for rest in s.text.split("](").skip(1) {
            let target = rest.split([')', '#', ' ']).next().unwrap_or("");
            let local = !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:");
            if local && !exists(&folder.join(target)) {
                found.push(format!("{}: links to {target}, which is not there", s.path));
            }
        }
    }
    found
}

/// What Markdown pages name in backticks is there: files and folders of the repository by their whole path, and
/// functions as `path/file.rs::function`. `exists` takes a path from the repository root.
pub fn dead_names(sources: &[Source], exists: &dyn Fn(&Path) -> bool) -> Vec<String> {
    let folders =
        ["engine-core/", "backend-", "server/", "kernels/", "tests/", "docs/", "demo-model/", ".ci/"];
    let mut found = Vec::new();
    for s in sources.iter().filter(|s| s.path.ends_with(".md")) {
        for name in s.text.split('`').skip(1).step_by(2) {
            let (path, function) = name.split_once("::").unwrap_or((name, ""));
            let of_ours = folders.iter().any(|f| path.starts_with(f)) && path.contains('/');
            if !of_ours || path.contains([' ', '\n', '*', '<', '{']) {
                continue;
            }
            let has = |other: &&Source| {
                other.path == path && other.words(function).any(|at| other.code[..at].ends_with("fn "))
            };
            if !exists(Path::new(path)) || (!function.is_empty() && !sources.iter().any(|o| has(&o))) {
                found.push(format!("{}: names {name}, which is not there", s.path));
            }
        }
    }
    found
}

/// A path name counts only where a path starts (`a/work/b` is none), a host name anywhere.
fn names(line: &str, name: &str) -> bool {
    let starts = |at: usize| {
        let before = line[..at].bytes().next_back();
        !name.starts_with('/') || before.is_none_or(|b| !(b.is_ascii_alphanumeric() || b"_.-*}".contains(&b)))
    };
    line.match_indices(name).any(|m| starts(m.0))
}

/// Name and length of each function with a body.
fn functions(s: &Source) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    for at in s.words("fn") {
        let rest = s.code[at + 2..].trim_start();
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let end = s.item_end(at);
        if !name.is_empty() && s.code[..end].ends_with('}') {
            found.push((name, s.line_of(end - 1) - s.line_of(at) + 1));
        }
    }
    found
}

/// Whether a SAFETY comment stands on line `line` (from 1), or in the lines above it that belong to the same
/// statement or are its comments and attributes.
fn has_safety(lines: &[&str], line: usize) -> bool {
    if lines[line - 1].contains("SAFETY:") {
        return true;
    }
    for text in lines[..line - 1].iter().rev().map(|l| l.trim()) {
        if text.starts_with("//") {
            if text.contains("SAFETY:") {
                return true;
            }
        } else if text.is_empty() || (text.ends_with([';', '{', '}']) && !text.starts_with("#[")) {
            return false;
        }
    }
    false
}

#[cfg(test)]
mod planted {
    use super::*;

    type Rule = fn(&[Source]) -> Vec<String>;

    #[track_caller]
    fn check(rule: Rule, path: &str, bad: &str, good: &str) {
        let found = rule(&[Source::new(path, bad)]);
        assert!(!found.is_empty(), "missed in {path}: {bad}");
        assert_eq!(rule(&[Source::new(path, good)]), Vec::<String>::new(), "{good}");
    }

    #[test]
    fn module_doc() {
        check(module_docs, "a/src/b.rs", "use x;\n", "//! About.\nuse x;\n");
        check(module_docs, "a/src/b.rs", "#![allow(a)]\nuse x;\n", "#![allow(a)]\n//! About.\n");
    }

    #[test]
    fn backend_feature() {
        let bad = "#[cfg(feature = \"cuda\")]\nfn f() {}\n";
        check(
            backend_features,
            "server/src/run.rs",
            bad,
            "// cfg(feature = \"cuda\")\n#[cfg(feature = \"x\")]\n",
        );
        assert!(backend_features(&[Source::new("server/src/device.rs", bad)]).is_empty());
        check(backend_features, "server/src/run.rs", "let a = cfg!(feature = \"cpu\");", "let a = 1;");
    }

    #[test]
    fn unsafe_in_a_safe_crate() {
        let bad = "//! .\nfn f() { unsafe { g() } }\n";
        check(
            unsafe_outside,
            "engine-core/src/kv/x.rs",
            bad,
            "// unsafe\nfn unsafe_name() { \"unsafe\"; }\n",
        );
        check(unsafe_outside, "server/src/x.rs", bad, "fn f() {}");
        assert!(
            unsafe_outside(&[Source::new(MAPS_FILES, bad), Source::new("backend-cpu/src/x.rs", bad)])
                .is_empty()
        );
    }

    #[test]
    fn unsafe_without_safety() {
        let path = "backend-cpu/src/x.rs";
        let good = "// SAFETY: a is live.\nlet x =\n    unsafe { g() };\n";
        check(unsafe_without_reason, path, "let x = unsafe { g() };\n", good);
        check(
            unsafe_without_reason,
            path,
            "// SAFETY: old.\nf();\nunsafe { g() };\n",
            "unsafe { /* SAFETY: a */ };",
        );
        check(
            unsafe_without_reason,
            path,
            "unsafe impl Send for X {}\n",
            "// SAFETY: a.\nunsafe impl Send for X {}\n",
        );
    }

    #[test]
    fn unwrap_outside_tests() {
        let path = "server/src/x.rs";
        let excused = "#[expect(clippy::unwrap_used, reason = \"a\")]\nlet a = b.unwrap();\n";
        check(unwraps, path, "fn f() { a.unwrap(); }", "fn f() { a.unwrap_or(1); \".unwrap()\"; }");
        check(
            unwraps,
            path,
            "fn f() { a.expect(\"b\"); }",
            "#[cfg(test)]\nmod tests { fn f() { a.unwrap() } }",
        );
        check(unwraps, path, &format!("{excused}c.unwrap();"), excused);
        check(unwraps, path, "#![allow(clippy::unwrap_used)]\n", "#![allow(clippy::too_many_lines)]\n");
        check(
            unwraps,
            path,
            "#[cfg(not(test))]\nfn f() { a.unwrap() }",
            "#[cfg(all(test, unix))]\nfn f() { a.unwrap() }",
        );
        assert!(unwraps(&[Source::new("tests/common/x.rs", "a.unwrap()")]).is_empty());
    }

    #[test]
    fn wire_type() {
        let derive = "#[derive(Deserialize)]\nstruct ChatRequest { model: String }\n";
        check(wire_types, "engine-core/src/engine/types.rs", derive, "struct Request;");
        assert!(wire_types(&[Source::new("engine-core/src/config/model.rs", derive)]).is_empty());
        assert!(wire_types(&[Source::new("server/src/openai/types.rs", derive)]).is_empty());
    }

    #[test]
    fn foreign_name() {
        for (a, b) in [
            ("https://index.crates", ".io/x"),
            ("\"/work", "/main\""),
            ("cd /home", "/me"),
            ("(/root", "/x)"),
        ] {
            check(
                foreign_names,
                "docs/a.md",
                &format!("x {a}{b}"),
                "tests/work/x and crates from a registry",
            );
        }
        assert!(foreign_names(&[Source::new("docs/a.md", &format!("tests/{}/x", "work"))]).is_empty());
    }

    #[test]
    fn dead_link() {
        let there = |path: &Path| path == Path::new("docs/b.md");
        let page = |text: &str| dead_links(&[Source::new("docs/a.md", text)], &there).len();
        assert_eq!(page("[b](b.md) [c](https://c) [d](#d) [e](b.md#x)"), 0);
        assert_eq!(page("[b](b.md) [c](c.md) [d](../docs/d.md)"), 2);
    }

    #[test]
    fn dead_name() {
        let there = |path: &Path| path == Path::new("tests/a.rs");
        let code = || Source::new("tests/a.rs", "//! .\nfn one() {}\n// fn two() {}\n");
        let page = |text: &str| dead_names(&[code(), Source::new("docs/a.md", text)], &there).len();
        assert_eq!(page("`tests/a.rs`, `tests/a.rs::one`, `vllm/b.rs`, `tests/*.rs`"), 0);
        assert_eq!(page("`tests/b.rs`, `tests/a.rs::two`, `tests/a.rs::three`, `server/x/`"), 4);
    }

    #[test]
    fn long_function_and_file() {
        let body = "    a();\n".repeat(FUNCTION_LINES);
        let text = format!(
            "fn short() {{}}\nfn tall(x: &str) -> [u8; 2] {{\n    let s = \"}}\";\n{body}}}\ntrait T {{ fn f(); }}\n"
        );
        let found = long(&[Source::new("a.rs", &text), Source::new("b.py", &"x\n".repeat(FILE_LINES + 1))]);
        let names: Vec<_> = found.iter().map(|l| (l.path.as_str(), l.function.as_str(), l.lines)).collect();
        assert_eq!(names, [("a.rs", "tall", FUNCTION_LINES + 3), ("b.py", "", FILE_LINES + 1)]);
        assert_eq!(unexplained(&found, &[]).len(), 2);
        assert_eq!(unexplained(&found, &[("a.rs", "tall", "one match"), ("b.py", "", "")]).len(), 1);
        assert_eq!(unexplained(&[], &[("a.rs", "tall", "one match")]).len(), 1);
    }
}
