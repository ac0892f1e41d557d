//! `+`, `~` and `*` as calls of functions of ours, which do as Python does and stay within the rendering's budget.
//!
//! minijinja offers no hook at its operators, and two things need one. A string doubles with each `x ~ x`, so that a
//! short loop would take all memory; and `+` with a string that `|safe` marked escapes the other operand (markupsafe
//! does so even where nothing else is escaped). So every chain `a + b + c` becomes `__python_add(a, b, c)`, and so on,
//! before the template is compiled. Chains nest as the operators bind: `*` tighter than `~`, `~` tighter than `+`.

use super::arithmetic::{ADD, CONCAT, MULTIPLY};

/// `tag` (`{{ ... }}` or `{% ... %}`) with every chain of the three operators replaced by a call.
pub(super) fn rewrite(tag: &str) -> String {
    let mut edits = Vec::new();
    let mut levels = vec![Level::default()];
    let mut previous = Token { text: "", start: 0 };
    for (index, token) in tokens(tag).into_iter().enumerate() {
        let tag_word = index == 0 || (index == 1 && tag.starts_with("{%"));
        match token.text {
            "(" | "[" | "{" => levels.push(Level::default()),
            ")" | "]" | "}" => {
                levels.pop().unwrap_or_default().close(&previous, &mut edits);
                if levels.is_empty() {
                    levels.push(Level::default());
                }
            }
            _ => {}
        }
        let Some(level) = levels.last_mut() else { break };
        if tag_word || is_boundary(token.text, previous.text) {
            std::mem::take(level).close(&previous, &mut edits);
        } else if !matches!(token.text, "(" | "[" | "{") {
            level.extend(&token, &previous, &mut edits);
        } else if let Some(outer) = levels.len().checked_sub(2).and_then(|at| levels.get_mut(at)) {
            outer.begin(token.start);
        }
        previous = token;
    }
    apply(tag, edits)
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

/// The open chains at one bracket level, up to an operator that binds weaker than `+`.
#[derive(Default)]
struct Level {
    sum: Chain,
    concat: Chain,
    product: Chain,
}

impl Level {
    /// An operand starts here, for every chain that waits for its first.
    fn begin(&mut self, at: usize) {
        for chain in [&mut self.sum, &mut self.concat, &mut self.product] {
            chain.start.get_or_insert(at);
        }
    }

    fn extend(&mut self, token: &Token<'_>, previous: &Token<'_>, edits: &mut Vec<(usize, Edit)>) {
        let end = previous.end();
        if self.sum.start.is_none() || is_operator(previous.text) || ends_in_exponent(previous.text) {
            self.begin(token.start);
            return;
        }
        match token.text {
            "+" | "-" => {
                std::mem::take(&mut self.product).close(end, MULTIPLY, edits);
                std::mem::take(&mut self.concat).close(end, CONCAT, edits);
                if token.text == "+" {
                    self.sum.operators.push(token.start);
                }
            }
            "~" => {
                std::mem::take(&mut self.product).close(end, MULTIPLY, edits);
                self.concat.operators.push(token.start);
            }
            "*" => self.product.operators.push(token.start),
            // These bind as `*` does: what stands to their left is one operand of a later `*`.
            "/" | "//" | "%" => {
                let start = self.product.start;
                std::mem::take(&mut self.product).close(end, MULTIPLY, edits);
                self.product.start = start;
            }
            _ => self.begin(token.start),
        }
    }

    /// An operator without its right operand stays as it is, for minijinja to refuse.
    fn close(self, last: &Token<'_>, edits: &mut Vec<(usize, Edit)>) {
        if is_operator(last.text) {
            return;
        }
        let end = last.end();
        self.product.close(end, MULTIPLY, edits);
        self.concat.close(end, CONCAT, edits);
        self.sum.close(end, ADD, edits);
    }
}

/// One run of operands between operators of one kind.
#[derive(Default)]
struct Chain {
    start: Option<usize>,
    operators: Vec<usize>,
}

impl Chain {
    fn close(self, end: usize, function: &'static str, edits: &mut Vec<(usize, Edit)>) {
        if let Some(start) = self.start.filter(|_| !self.operators.is_empty()) {
            edits.push((start, Edit::Open(function)));
            edits.extend(self.operators.into_iter().map(|at| (at, Edit::Comma)));
            edits.push((end, Edit::Close));
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Edit {
    Close,
    /// Functions that open at one place stand in the order of their names: the weakest binding first.
    Open(&'static str),
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
            Edit::Open(function) => out.extend([function, "("]),
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

/// Whether a sign behind this token belongs to the operand that follows.
fn is_operator(token: &str) -> bool {
    matches!(token, "+" | "-" | "~" | "*" | "/" | "//" | "%" | "**")
}

/// `1e` of `1e+5`.
fn ends_in_exponent(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_digit()) && word.ends_with(['e', 'E']) && !word.starts_with("0x")
}

/// Whether chains end at this token: it binds weaker than `+`, or separates expressions.
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
            ("{%- set x = (a + b) ~ c %}", "{%- set x = __python_concat((__python_add(a , b)) , c) %}"),
            (
                "{{ f(x + 1, y=z + w) if q is not none else r }}",
                "{{ f(__python_add(x , 1), y=__python_add(z , w)) if q is not none else r }}",
            ),
            ("{{ [1] + [2, +3] }}", "{{ __python_add([1] , [2, +3]) }}"),
            ("{{ x is not none }}", "{{ x is not none }}"),
            ("{%+ set x = a.if + b %}", "{%+ set x = __python_add(a.if , b) %}"),
            ("{{ a ~ b + c ~ d }}", "{{ __python_add(__python_concat(a , b) , __python_concat(c , d)) }}"),
            ("{{ a + b ~ c * d }}", "{{ __python_add(a , __python_concat(b , __python_multiply(c , d))) }}"),
            ("{{ a*b~c }}", "{{ __python_concat(__python_multiply(a,b),c) }}"),
            ("{{ a * b // c * d }}", "{{ __python_multiply(__python_multiply(a , b) // c , d) }}"),
            ("{{ a * -b - -c ~ d }}", "{{ __python_multiply(a , -b) - __python_concat(-c , d) }}"),
            ("{{ f(*x) ~ 1e+5 }}", "{{ __python_concat(f(*x) , 1e+5) }}"),
            (
                "{{ a ~ ' ~ ' ~ loop.index ~ (b if c) }}",
                "{{ __python_concat(a , ' ~ ' , loop.index , (b if c)) }}",
            ),
            ("{{ a ~ }}", "{{ a ~ }}"),
            ("{{ a ** b * c }}", "{{ __python_multiply(a ** b , c) }}"),
        ];
        for (source, expected) in cases {
            assert_eq!(rewrite(source), expected, "{source}");
        }
    }
}
