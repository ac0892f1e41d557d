//! The repository's files as the rules see them: paths, text, and Rust with comments and literals blanked.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One text file of the repository.
pub struct Source {
    /// From the repository root, with `/`.
    pub path: String,
    pub text: String,
    /// Of a Rust file: `text` with comments, strings and character literals turned to spaces, byte for byte, so
    /// that an offset means the same in both. Empty for other files.
    pub code: String,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        let code = if path.ends_with(".rs") { blank(text) } else { String::new() };
        Self { path: path.to_owned(), text: text.to_owned(), code }
    }

    pub fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// The line of an offset, from 1.
    pub fn line_of(&self, at: usize) -> usize {
        self.text.as_bytes()[..at].iter().filter(|&&b| b == b'\n').count() + 1
    }

    /// Offsets of a word in the code (no letter, digit or `_` on either side).
    pub fn words<'a>(&'a self, word: &'a str) -> impl Iterator<Item = usize> + 'a {
        let bytes = self.code.as_bytes();
        self.code.match_indices(word).map(|m| m.0).filter(move |&at| {
            let end = at + word.len();
            (at == 0 || !is_word(bytes[at - 1])) && (end == bytes.len() || !is_word(bytes[end]))
        })
    }

    /// Where the item or statement that starts at `at` ends: behind its `;`, or behind the brace that closes it.
    pub fn item_end(&self, at: usize) -> usize {
        let mut depth = 0i32;
        for (i, b) in self.code.bytes().enumerate().skip(at) {
            match b {
                b'(' | b'[' | b'{' => depth += 1,
                b')' | b']' => depth -= 1,
                b'}' => {
                    depth -= 1;
                    if depth <= 0 {
                        return i + 1;
                    }
                }
                b';' if depth == 0 => return i + 1,
                _ => {}
            }
        }
        self.code.len()
    }

    /// What only a test build compiles: each `#[cfg(test)]` with the item it stands on.
    pub fn test_spans(&self) -> Vec<Range<usize>> {
        let starts = self.code.match_indices("#[cfg(").map(|m| m.0);
        let of_tests = starts.filter(|&at| {
            let end = self.code[at..].find(']').map_or(self.code.len(), |n| at + n);
            let condition = &self.code[at..end];
            condition.contains("(test") && !condition.contains("not(test")
        });
        of_tests.map(|at| at..self.item_end(at)).collect()
    }

    /// Files of modules declared in the test spans, both places where each may lie.
    fn test_modules(&self) -> Vec<String> {
        let (folder, name) = self.path.rsplit_once('/').unwrap_or(("", &self.path));
        let stem = name.trim_end_matches(".rs");
        let inside =
            if ["mod", "lib", "main"].contains(&stem) { folder.into() } else { format!("{folder}/{stem}") };
        let mut files = Vec::new();
        for span in self.test_spans() {
            let item = &self.text[span];
            if !item.ends_with(';') {
                continue;
            }
            if let Some(path) = item.split("#[path = \"").nth(1).and_then(|rest| rest.split('"').next()) {
                files.push(format!("{folder}/{path}"));
            } else if let Some(module) = item.split("mod ").nth(1) {
                let module = module.trim_end_matches(';').trim();
                files.extend([format!("{inside}/{module}.rs"), format!("{inside}/{module}/")]);
            }
        }
        files
    }
}

/// All text files that git knows or would add.
pub fn repository() -> Vec<Source> {
    let root = root();
    let mut sources = Vec::new();
    for path in listed(&root) {
        if let Ok(text) = std::fs::read_to_string(root.join(&path)) {
            sources.push(Source::new(&path, &text));
        }
    }
    assert!(sources.len() > 100, "found only {} files under {}", sources.len(), root.display());
    sources
}

/// Where the workspace lies.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Rust files that only tests compile: the tests crate, folders of tests, benches and examples, and modules
/// declared under `cfg(test)`.
pub fn test_files(sources: &[Source]) -> BTreeSet<String> {
    let declared: Vec<String> = sources.iter().flat_map(Source::test_modules).collect();
    let is_test = |path: &str| {
        path.starts_with("tests/")
            || path.split('/').any(|part| ["tests", "benches", "examples", "fuzz"].contains(&part))
            || declared.iter().any(|d| path == d || (d.ends_with('/') && path.starts_with(d)))
    };
    sources.iter().map(|s| s.path.clone()).filter(|path| is_test(path)).collect()
}

/// `git ls-files`; in a source archive without git, a walk.
fn listed(root: &Path) -> Vec<String> {
    let git = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
        .current_dir(root)
        .output();
    match git {
        Ok(output) if output.status.success() && !output.stdout.is_empty() => {
            let names = String::from_utf8_lossy(&output.stdout);
            names.split_terminator('\0').map(str::to_owned).collect()
        }
        _ => {
            let mut found = Vec::new();
            walk(root, "", &mut found);
            found
        }
    }
}

fn walk(root: &Path, folder: &str, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(root.join(folder)).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
        if entry.path().is_file() {
            found.push(path);
        } else if name == ".ci" || !(name.starts_with('.') || ["target", "__pycache__"].contains(&&*name)) {
            walk(root, &path, found);
        }
    }
}

fn is_word(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_'
}

/// Blanks comments, strings and character literals; newlines and offsets stay.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = literal_end(bytes, at);
        for b in &mut out[at..end] {
            if *b != b'\n' {
                *b = b' ';
            }
        }
        at = end.max(at + 1);
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// End of the comment or literal that starts at `at`; `at` itself when none does.
fn literal_end(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let after_word = at > 0 && is_word(bytes[at - 1]);
    if rest.starts_with(b"//") {
        return at + rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len());
    }
    if rest.starts_with(b"/*") {
        return at + block_comment(rest);
    }
    match rest[0] {
        b'"' => at + quoted(rest, b'"'),
        b'\'' => at + character(rest),
        b'r' if !after_word || raw_prefix(bytes, at) => at + raw_string(rest),
        _ => at,
    }
}

/// Whether the letter before an `r` is the `b` or `c` of `br"` or `cr"`.
fn raw_prefix(bytes: &[u8], at: usize) -> bool {
    matches!(bytes[at - 1], b'b' | b'c') && (at < 2 || !is_word(bytes[at - 2]))
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut i) = (0, 0);
    while i < rest.len() {
        if rest[i..].starts_with(b"/*") {
            (depth, i) = (depth + 1, i + 2);
        } else if rest[i..].starts_with(b"*/") {
            (depth, i) = (depth - 1, i + 2);
            if depth == 0 {
                return i;
            }
        } else {
            i += 1;
        }
    }
    rest.len()
}

fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut i = 1;
    while i < rest.len() && rest[i] != quote {
        i += if rest[i] == b'\\' { 2 } else { 1 };
    }
    (i + 1).min(rest.len())
}

/// A character literal; nothing for a lifetime.
fn character(rest: &[u8]) -> usize {
    if rest.get(1) == Some(&b'\\') {
        return quoted(rest, b'\'');
    }
    let text = std::str::from_utf8(&rest[1..rest.len().min(6)])
        .unwrap_or_else(|e| std::str::from_utf8(&rest[1..1 + e.valid_up_to()]).unwrap_or(""));
    match text.chars().next() {
        Some(c) if text[c.len_utf8()..].starts_with('\'') => c.len_utf8() + 2,
        _ => 0,
    }
}

/// A raw string; nothing for a word that starts with `r`.
fn raw_string(rest: &[u8]) -> usize {
    let hashes = rest[1..].iter().take_while(|&&b| b == b'#').count();
    if rest.get(1 + hashes) != Some(&b'"') {
        return 0;
    }
    let mut close = vec![b'"'];
    close.resize(1 + hashes, b'#');
    let body = &rest[2 + hashes..];
    let end = body.windows(close.len()).position(|w| w == close).map_or(body.len(), |n| n + close.len());
    2 + hashes + end
}

#[test]
fn comments_and_literals_are_blank_and_offsets_stay() {
    let cases = [
        ("a // b\nc", "a     \nc"),
        ("a /* b /* c */ d */ e", "a                   e"),
        (r#"f("x{\"}", 'y', '\'', b'{')"#, "f(       ,    ,     , b   )"),
        ("r#\"a \" { b\"# + 1", "             + 1"),
        ("br\"{\" x", "b     x"),
        ("fn f<'a>(x: &'a str) {}", "fn f<'a>(x: &'a str) {}"),
        ("var\"{\"", "var   "),
        ("'é' '字' é", "           é"),
    ];
    for (text, wanted) in cases {
        let code = blank(text);
        assert_eq!(code.len(), text.len(), "{text}");
        assert_eq!(code.trim_end(), wanted.trim_end(), "{text}");
    }
}

#[test]
fn test_modules_are_found_where_they_lie() {
    let parent = Source::new("a/src/kv/pages.rs", "fn f() {}\n#[cfg(test)]\nmod deep;\n");
    let by_path = Source::new("a/src/b.rs", "#[cfg(test)]\n#[path = \"b_tests.rs\"]\nmod tests;\n");
    let others =
        ["a/src/kv/pages/deep.rs", "a/src/kv/pages/deep/x.rs", "a/src/b_tests.rs", "a/src/kv/deep.rs"];
    let mut sources = vec![parent, by_path];
    sources.extend(others.iter().map(|path| Source::new(path, "")));
    let found = test_files(&sources);
    assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), {
        let mut wanted = others[..3].to_vec();
        wanted.sort_unstable();
        wanted
    });
}
