//! Source changes before minijinja sees a template. Lines keep their numbers.
//!
//! - `{% generation %}` ... `{% endgeneration %}` (transformers marks what the assistant wrote) becomes a `with`
//!   block, which has the same scope and the same white space rules;
//! - the iterable of every `for` passes through a filter that refuses `none`, as Python does, and is told how much
//!   plain text the body holds (see `budget`);
//! - every assigned value passes through a filter that refuses what nests too deep (see `nesting`);
//! - `+`, `~` and `*` become calls (see `operators`);
//! - `\r\n` and `\r` become `\n`, as jinja2's lexer does.

use std::borrow::Cow;

use super::{nesting, operators};

/// Name of the filter that [`for_minijinja`] puts behind every iterable.
pub(super) const ITERABLE_FILTER: &str = "__python_iterable";

/// `source` in terms that minijinja knows.
pub(super) fn for_minijinja(source: &str) -> String {
    let source = unify_newlines(source);
    let mut loops = Loops::default();
    let mut out = String::with_capacity(source.len() + 256);
    let mut rest: &str = &source;
    while let Some(start) = rest.find('{') {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        loops.text_bytes += before.len();
        let taken = match tag.as_bytes().get(1) {
            Some(b'#') => tag.find("#}").map_or(tag.len(), |end| end + 2),
            Some(b'{') => tag_end(tag, "}}"),
            Some(b'%') => tag_end(tag, "%}"),
            _ => 1,
        };
        let (tag, after) = tag.split_at(taken);
        let tag = match tag.starts_with("{{") || tag.starts_with("{%") {
            true => Cow::Owned(operators::rewrite(tag)),
            false => Cow::Borrowed(tag),
        };
        if tag.starts_with("{%") {
            rest = copy_block(&tag, after, &mut out, &mut loops);
        } else {
            out.push_str(&tag);
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

fn unify_newlines(source: &str) -> Cow<'_, str> {
    match source.contains('\r') {
        true => Cow::Owned(source.replace("\r\n", "\n").replace('\r', "\n")),
        false => Cow::Borrowed(source),
    }
}

/// Length of the tag at the start of `text`, with its end mark; string literals inside are skipped.
fn tag_end(text: &str, mark: &str) -> usize {
    let mut scanner = Scanner::new(text, 2);
    while let Some(at) = scanner.next_outside_strings() {
        if text[at..].starts_with(mark) && (mark != "}}" || scanner.depth == 0) {
            return at + mark.len();
        }
        scanner.track_depth(at);
    }
    text.len()
}

/// Copies one `{% ... %}`, changed if need be, and after `raw` all up to `endraw`; returns what is left.
fn copy_block<'s>(tag: &str, after: &'s str, out: &mut String, loops: &mut Loops) -> &'s str {
    let body_start = 2 + usize::from(matches!(tag.as_bytes().get(2), Some(b'-' | b'+')));
    let name_start = body_start + tag[body_start..].len() - tag[body_start..].trim_start().len();
    let name: &str =
        tag[name_start..].split(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap_or("");
    let tail = &tag[name_start + name.len()..];
    match name {
        "generation" | "endgeneration" => {
            out.push_str(&tag[..name_start]);
            out.push_str(if name == "generation" { "with" } else { "endwith" });
            out.push_str(tail);
        }
        "for" => {
            out.push_str(&tag[..name_start + name.len()]);
            if let Some(place) = copy_for(tail, out) {
                loops.open.push((place, loops.text_bytes));
            }
        }
        "set" => {
            out.push_str(&tag[..name_start + name.len()]);
            copy_set(tail, out);
        }
        "endfor" => {
            out.push_str(tag);
            loops.end(out);
        }
        "raw" => {
            out.push_str(tag);
            let end = end_of_raw(after);
            out.push_str(&after[..end]);
            loops.text_bytes += end;
            return &after[end..];
        }
        _ => out.push_str(tag),
    }
    after
}

/// Plain text seen so far, and the loops that are open: where their filter ends, and the text before them.
#[derive(Default)]
struct Loops {
    text_bytes: usize,
    open: Vec<(usize, usize)>,
}

impl Loops {
    /// Tells the filter of the innermost loop how much plain text its body holds.
    fn end(&mut self, out: &mut String) {
        if let Some((place, before)) = self.open.pop() {
            out.insert_str(place, &format!("({})", self.text_bytes - before));
        }
    }
}

/// Where the `endraw` tag starts in `text`.
fn end_of_raw(text: &str) -> usize {
    let mut from = 0;
    while let Some(found) = text[from..].find("{%") {
        let body = text[from + found + 2..].trim_start_matches(['-', '+']).trim_start();
        if body.starts_with("endraw") {
            return from + found;
        }
        from += found + 2;
    }
    text.len()
}

/// Copies ` x in ITERABLE [if ..] [recursive] %}` with a filter behind the iterable; returns where the filter ends.
fn copy_for(tail: &str, out: &mut String) -> Option<usize> {
    let end = tail.strip_suffix("%}").map_or(tail.len(), |body| body.trim_end_matches(['-', '+']).len());
    let mut scanner = Scanner::new(&tail[..end], 0);
    let (mut iterable_start, mut iterable_end) = (None, end);
    while let Some(at) = scanner.next_outside_strings() {
        scanner.track_depth(at);
        match (scanner.depth == 0).then(|| word_at(&tail[..end], at)).flatten() {
            Some("in") if iterable_start.is_none() => iterable_start = Some(at + 2),
            Some("if" | "recursive") if iterable_start.is_some() => {
                iterable_end = at;
                break;
            }
            _ => {}
        }
    }
    let Some(start) = iterable_start else {
        out.push_str(tail);
        return None;
    };
    let iterable = &tail[start..iterable_end];
    out.push_str(&tail[..start]);
    let trimmed = iterable.trim();
    let space_before = iterable.len() - iterable.trim_start().len();
    let (before, after) = (&iterable[..space_before], &iterable[space_before + trimmed.len()..]);
    out.push_str(&format!("{before}({trimmed})|{ITERABLE_FILTER}"));
    let place = out.len();
    out.push_str(after);
    out.push_str(&tail[iterable_end..]);
    Some(place)
}

/// Copies ` TARGET = VALUE %}` with a filter behind the value. A block (`{% set x %}`) has text for a value.
fn copy_set(tail: &str, out: &mut String) {
    let end = tail.strip_suffix("%}").map_or(tail.len(), |body| body.trim_end_matches(['-', '+']).len());
    let mut scanner = Scanner::new(&tail[..end], 0);
    let mut equals = None;
    while let Some(at) = scanner.next_outside_strings() {
        scanner.track_depth(at);
        if scanner.depth == 0 && tail.as_bytes()[at] == b'=' {
            equals = Some(at);
            break;
        }
    }
    let Some(value_start) = equals.map(|at| at + 1).filter(|start| !tail[*start..end].trim().is_empty())
    else {
        out.push_str(tail);
        return;
    };
    let (target, value) = (&tail[..value_start], tail[value_start..end].trim());
    let to_attribute = if target.contains('.') { "true" } else { "false" };
    out.push_str(&format!("{target} ({value})|{}({to_attribute}) ", nesting::ASSIGNED_FILTER));
    out.push_str(&tail[end..]);
}

/// The whole identifier that starts at byte `at`, if one starts there.
fn word_at(text: &str, at: usize) -> Option<&str> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    if text[..at].chars().next_back().is_some_and(|c| is_word(c) || c == '.') {
        return None;
    }
    let word = text[at..].split(|c| !is_word(c)).next()?;
    (!word.is_empty()).then_some(word)
}

/// Walks a tag character by character, past string literals, counting brackets.
struct Scanner<'s> {
    text: &'s str,
    at: usize,
    depth: usize,
}

impl<'s> Scanner<'s> {
    fn new(text: &'s str, at: usize) -> Self {
        Self { text, at: at.min(text.len()), depth: 0 }
    }

    /// Byte offset of the next character that is part of no string literal.
    fn next_outside_strings(&mut self) -> Option<usize> {
        loop {
            let c = self.text[self.at..].chars().next()?;
            let here = self.at;
            self.at += c.len_utf8();
            if c != '"' && c != '\'' {
                return Some(here);
            }
            self.skip_string(c);
        }
    }

    fn skip_string(&mut self, quote: char) {
        let mut escaped = false;
        for c in self.text[self.at..].chars() {
            self.at += c.len_utf8();
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                c if c == quote => return,
                _ => {}
            }
        }
    }

    fn track_depth(&mut self, at: usize) {
        match self.text.as_bytes()[at] {
            b'(' | b'[' | b'{' => self.depth += 1,
            b')' | b']' | b'}' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_rewritten_and_all_else_is_kept() {
        let cases = [
            ("a {b} {{ '}}' }} {# for x in y #}", "a {b} {{ '}}' }} {# for x in y #}"),
            ("{%- generation -%}x{% endgeneration %}", "{%- with -%}x{% endwith %}"),
            ("{% for x in y %}", "{% for x in (y)|__python_iterable %}"),
            ("{%- for a, b in c.items() -%}", "{%- for a, b in (c.items())|__python_iterable -%}"),
            (
                "{% for x in f(a if b else c)[1:] if x in z recursive %}",
                "{% for x in (f(a if b else c)[1:])|__python_iterable if x in z recursive %}",
            ),
            (
                "{% for x in ' in %} if ' ~ d.in %}",
                "{% for x in (__python_concat(' in %} if ' , d.in))|__python_iterable %}",
            ),
            (
                "ab{% for x in y %}cd{% for z in x %}e{{ z }}{% endfor %}{% endfor %}f",
                "ab{% for x in (y)|__python_iterable(3) %}cd{% for z in (x)|__python_iterable(1) %}e{{ z }}\
                 {% endfor %}{% endfor %}f",
            ),
            ("{% raw %}{% for x in y %}{%- endraw %}", "{% raw %}{% for x in y %}{%- endraw %}"),
            (
                "{%- set a, b = c == 1, '=' -%}{% set n.x=a %}{% set y %}{% set z | f(a=1) %}",
                "{%- set a, b = (c == 1, '=')|__python_assigned(false) -%}{% set n.x= (a)|__python_assigned(true) %}\
                 {% set y %}{% set z | f(a=1) %}",
            ),
            ("{{ {'a': {'b': 1}} }}", "{{ {'a': {'b': 1}} }}"),
            ("{% for", "{% for"),
            ("a\r\nb\rc{", "a\nb\nc{"),
        ];
        for (source, expected) in cases {
            assert_eq!(for_minijinja(source), expected);
        }
    }
}
