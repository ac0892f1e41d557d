//! `+` with a string that `|safe` marked: markupsafe escapes the other operand, even where nothing else is escaped.
//!
//! minijinja's `+` forgets the mark, and it offers no hook there. So in a template that uses `safe` or `escape`
//! at all, every chain `a + b + c` becomes a call of [`ADD_FUNCTION`], which adds as Python does.

use minijinja::value::{Rest, ValueKind};
use minijinja::{Error, ErrorKind, HtmlEscape, Value};

/// Name of the function that takes the place of `+`.
pub(super) const ADD_FUNCTION: &str = "__python_add";

/// Whether some filter of `source` makes marked strings.
pub(super) fn is_used(source: &str) -> bool {
    source.split('|').skip(1).any(|after| {
        let name = after.trim_start().split(|c: char| !c.is_alphanumeric() && c != '_').next();
        matches!(name, Some("safe" | "escape" | "e" | "forceescape"))
    })
}

/// `tag` (`{{ ... }}` or `{% ... %}`) with every chain of additions replaced by a call.
pub(super) fn rewrite_additions(tag: &str) -> String {
    let mut edits = Vec::new();
    let mut levels = vec![Chain::default()];
    let mut previous = Token { text: "", start: 0 };
    for (index, token) in tokens(tag).into_iter().enumerate() {
        let tag_word = index == 0 || (index == 1 && tag.starts_with("{%"));
        match token.text {
            "(" | "[" | "{" => levels.push(Chain::default()),
            ")" | "]" | "}" => {
                levels.pop().unwrap_or_default().close(previous.end(), &mut edits);
                if levels.is_empty() {
                    levels.push(Chain::default());
                }
            }
            _ => {}
        }
        let Some(chain) = levels.last_mut() else { break };
        if tag_word || is_boundary(token.text, previous.text) {
            std::mem::take(chain).close(previous.end(), &mut edits);
        } else if !matches!(token.text, "(" | "[" | "{") {
            chain.extend(&token);
        } else if let Some(outer) = levels.len().checked_sub(2).and_then(|at| levels.get_mut(at)) {
            outer.start.get_or_insert(token.start);
        }
        previous = token;
    }
    apply(tag, edits)
}

/// Python's `a + b + ...`, left to right.
pub(super) fn add(operands: Rest<Value>) -> Result<Value, Error> {
    let mut operands = operands.iter().cloned();
    let first = operands.next().unwrap_or_default();
    operands.try_fold(first, |left, right| add_two(&left, &right))
}

fn add_two(left: &Value, right: &Value) -> Result<Value, Error> {
    if let (Some(a), Some(b)) = (left.as_str(), right.as_str()) {
        let escaped = |value: &Value, text: &str| match value.is_safe() {
            true => text.to_owned(),
            false => HtmlEscape(text)
                .to_string()
                .replace("&quot;", "&#34;")
                .replace("&#x27;", "&#39;")
                .replace("&#x2f;", "/"),
        };
        return Ok(match left.is_safe() || right.is_safe() {
            true => Value::from_safe_string(escaped(left, a) + &escaped(right, b)),
            false => Value::from([a, b].concat()),
        });
    }
    let is_list = |value: &Value| matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable);
    if is_list(left) && is_list(right) && left.is_tuple() == right.is_tuple() {
        let items: Vec<Value> = left.try_iter()?.chain(right.try_iter()?).collect();
        return Ok(match left.is_tuple() {
            true => Value::from(minijinja::value::Tuple::from(items)),
            false => Value::from(items),
        });
    }
    let is_number = |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool);
    if is_number(left) && is_number(right) {
        if let (Ok(a), Ok(b)) = (i64::try_from(left.clone()), i64::try_from(right.clone())) {
            let both_integers = super::text::as_float(left).or(super::text::as_float(right)).is_none();
            if let Some(sum) = a.checked_add(b).filter(|_| both_integers) {
                return Ok(Value::from(sum));
            }
        }
        return Ok(Value::from(f64::try_from(left.clone())? + f64::try_from(right.clone())?));
    }
    let message = format!("unsupported operand types for +: {} and {}", left.kind(), right.kind());
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

#[derive(Clone, Copy)]
struct Token<'s> {
    text: &'s str,
    start: usize,
}

impl Token<'_> {
    fn end(&self) -> usize {
        self.start + self.text.len()
    }
}

/// One run of operands at one bracket level, up to an operator that binds weaker than `+`.
#[derive(Default)]
struct Chain {
    start: Option<usize>,
    pluses: Vec<usize>,
}

impl Chain {
    fn extend(&mut self, token: &Token<'_>) {
        match token.text {
            "+" if self.start.is_some() => self.pluses.push(token.start),
            _ => {
                self.start.get_or_insert(token.start);
            }
        }
    }

    fn close(self, end: usize, edits: &mut Vec<(usize, Edit)>) {
        if let Some(start) = self.start.filter(|_| !self.pluses.is_empty()) {
            edits.push((start, Edit::Open));
            edits.extend(self.pluses.into_iter().map(|at| (at, Edit::Comma)));
            edits.push((end, Edit::Close));
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Edit {
    Close,
    Open,
    Comma,
}

fn apply(tag: &str, mut edits: Vec<(usize, Edit)>) -> String {
    edits.sort();
    let mut out = String::with_capacity(tag.len() + edits.len() * 16);
    let mut copied = 0;
    for (at, edit) in edits {
        out.push_str(&tag[copied..at]);
        copied = at;
        match edit {
            Edit::Open => out.extend([ADD_FUNCTION, "("]),
            Edit::Close => out.push(')'),
            Edit::Comma => {
                out.push(',');
                copied = at + 1;
            }
        }
    }
    out.push_str(&tag[copied..]);
    out
}

/// Whether an addition ends at this token: it binds weaker than `+`, or separates expressions.
fn is_boundary(token: &str, previous: &str) -> bool {
    match token {
        "," | ":" | "=" | "==" | "!=" | "<" | ">" | "<=" | ">=" => true,
        "}}" | "-}}" | "%}" | "-%}" | "+%}" => true,
        "and" | "or" | "if" | "else" | "recursive" => previous != "." && previous != "|",
        "not" | "in" => !matches!(previous, "." | "|" | "is" | "not"),
        _ => false,
    }
}

/// Splits a tag into words, numbers, whole string literals and operators; white space is dropped.
fn tokens(tag: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(c) = tag[at..].chars().next() {
        let length = match c {
            c if c.is_whitespace() => {
                at += c.len_utf8();
                continue;
            }
            '"' | '\'' => string_length(&tag[at..], c),
            c if is_word(c) => tag[at..].find(|c| !is_word(c)).unwrap_or(tag.len() - at),
            _ => operator_length(&tag[at..], at == 0),
        };
        tokens.push(Token { text: &tag[at..at + length], start: at });
        at += length;
    }
    tokens
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn string_length(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// White space marks (`{%-`, `-%}`) belong to the tag's own marks.
fn operator_length(text: &str, at_start: bool) -> usize {
    let starts = |mark: &str| text.starts_with(mark);
    if at_start {
        return 2 + usize::from(matches!(text.as_bytes().get(2), Some(b'-' | b'+')));
    }
    if ["-}}", "-%}", "+%}"].contains(&text) {
        return 3;
    }
    if ["}}", "%}"].contains(&text) || ["==", "!=", "<=", ">=", "//", "**"].iter().any(|o| starts(o)) {
        return 2;
    }
    text.chars().next().map_or(1, char::len_utf8)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn chains_become_calls_and_the_rest_is_kept() {
        let cases = [
            ("{{ a + b }}", "{{ __python_add(a , b) }}"),
            (
                "{{- 'x+'|safe + t['a' + b]|tojson() -}}",
                "{{- __python_add('x+'|safe , t[__python_add('a' , b)]|tojson()) -}}",
            ),
            (
                "{% if a + b == c + d and not e %}",
                "{% if __python_add(a , b) == __python_add(c , d) and not e %}",
            ),
            ("{%- set x = (a + b) ~ c %}", "{%- set x = (__python_add(a , b)) ~ c %}"),
            (
                "{{ f(x + 1, y=z + w) if q is not none else r }}",
                "{{ f(__python_add(x , 1), y=__python_add(z , w)) if q is not none else r }}",
            ),
            ("{{ [1] + [2, +3] }}", "{{ __python_add([1] , [2, +3]) }}"),
            ("{{ x is not none }}", "{{ x is not none }}"),
            ("{%+ set x = a.if + b %}", "{%+ set x = __python_add(a.if , b) %}"),
        ];
        for (source, expected) in cases {
            assert_eq!(rewrite_additions(source), expected);
        }
    }

    #[test]
    fn only_marked_strings_escape_their_neighbour() {
        let safe = Value::from_safe_string("<b>".into());
        let plain = Value::from("<i> \"'&/");
        let sum = add(Rest(vec![safe.clone(), plain.clone()])).unwrap();
        assert_eq!(sum.as_str(), Some("<b>&lt;i&gt; &#34;&#39;&amp;/"));
        assert!(sum.is_safe());
        assert_eq!(
            add(Rest(vec![plain.clone(), plain.clone()])).unwrap().as_str(),
            Some("<i> \"'&/<i> \"'&/")
        );
        assert_eq!(add(Rest(vec![Value::from(1), Value::from(2)])).unwrap(), Value::from(3));
        assert_eq!(add(Rest(vec![Value::from(1), Value::from(2.5)])).unwrap(), Value::from(3.5));
        assert!(add(Rest(vec![safe, Value::from(1)])).is_err());
    }
}
