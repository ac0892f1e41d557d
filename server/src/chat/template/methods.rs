//! Methods of Python's `str`, `dict` and `list`, which templates call as they would in Python.

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Kwargs, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use super::budget;
use super::filters::{iterable, replaced};
use super::text::is_python_space;

/// Longest string that a padding method makes, in characters.
const MAX_PADDED_CHARS: usize = 1 << 20;

/// The environment's callback for methods that the value itself does not have.
pub(super) fn call(_: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (positional, kwargs): (&[Value], Kwargs) = from_args(args)?;
    let args = Args { method, positional, kwargs };
    let result = match value.as_str() {
        Some(text) => text_method(text, &args),
        None => match value.kind() {
            ValueKind::Map => dict_method(value, &args),
            ValueKind::Seq | ValueKind::Iterable => list_method(value, &args),
            _ => None,
        },
    };
    result.unwrap_or_else(|| Err(Error::from(ErrorKind::UnknownMethod)))
}

/// Pads `text` on both sides to `width` characters, the odd one where `str.center` puts it.
pub(super) fn center(text: &str, width: usize, fill: char) -> String {
    let missing = width.min(MAX_PADDED_CHARS).saturating_sub(text.chars().count());
    let left = missing / 2 + (missing & width & 1);
    let side = |count: usize| std::iter::repeat_n(fill, count);
    side(left).chain(text.chars()).chain(side(missing - left)).collect()
}

struct Args<'a> {
    method: &'a str,
    positional: &'a [Value],
    kwargs: Kwargs,
}

impl Args<'_> {
    /// The argument at `index`, or of that name; `None` when absent or Python's `None`.
    fn get(&self, index: usize, name: &str) -> Option<Value> {
        let value = match self.positional.get(index) {
            Some(value) => Some(value.clone()),
            None if name.is_empty() => None,
            None => self.kwargs.get::<Option<Value>>(name).ok().flatten(),
        };
        value.filter(|value| !value.is_none())
    }

    fn text(&self, index: usize, name: &str) -> Result<Option<String>, Error> {
        match self.get(index, name) {
            None => Ok(None),
            Some(value) => match value.as_str() {
                Some(text) => Ok(Some(text.to_owned())),
                None => Err(self.type_error(&format!("argument {} must be str", index + 1))),
            },
        }
    }

    fn required_text(&self, index: usize) -> Result<String, Error> {
        let missing = || self.type_error(&format!("takes a str as argument {}", index + 1));
        self.text(index, "")?.ok_or_else(missing)
    }

    fn integer(&self, index: usize, name: &str) -> Result<Option<i64>, Error> {
        self.get(index, name).map(i64::try_from).transpose()
    }

    fn type_error(&self, message: &str) -> Error {
        Error::new(ErrorKind::InvalidOperation, format!("{}() {message}", self.method))
    }
}

/// A method of `str`; `None` when `str` has none of that name.
fn text_method(text: &str, args: &Args<'_>) -> Option<Result<Value, Error>> {
    let result = match args.method {
        "strip" | "lstrip" | "rstrip" => strip(text, args),
        "split" | "rsplit" => split(text, args),
        "splitlines" => Ok(split_lines(text, args.get(0, "keepends").is_some_and(|keep| keep.is_true()))),
        "partition" | "rpartition" => partition(text, args),
        "startswith" | "endswith" => has_affix(text, args),
        "removeprefix" => args.required_text(0).map(|p| Value::from(text.strip_prefix(&*p).unwrap_or(text))),
        "removesuffix" => args.required_text(0).map(|s| Value::from(text.strip_suffix(&*s).unwrap_or(text))),
        "replace" => replace(text, args),
        "find" | "rfind" | "index" | "rindex" => find(text, args),
        "count" => args.required_text(0).map(|needle| match needle.is_empty() {
            true => Value::from(text.chars().count() + 1),
            false => Value::from(text.matches(&*needle).count()),
        }),
        "join" => join(text, args),
        "format" => str_format(text, &with_kwargs(args)),
        "upper" => Ok(Value::from(text.to_uppercase())),
        "lower" | "casefold" => Ok(Value::from(text.to_lowercase())),
        "capitalize" => Ok(Value::from(capitalize(text))),
        "title" => Ok(Value::from(title(text))),
        "swapcase" => Ok(Value::from(text.chars().map(swap_case).collect::<String>())),
        "zfill" | "center" | "ljust" | "rjust" => pad(text, args),
        "expandtabs" => args
            .integer(0, "tabsize")
            .map(|size| Value::from(expand_tabs(text, size.unwrap_or(8).clamp(0, 64) as usize))),
        name if name.starts_with("is") => return is_method(text, name).map(|answer| Ok(Value::from(answer))),
        _ => return None,
    };
    Some(result)
}

fn list_of(parts: Vec<&str>) -> Value {
    parts.into_iter().map(Value::from).collect()
}

fn strip(text: &str, args: &Args<'_>) -> Result<Value, Error> {
    let chars = args.text(0, "")?;
    let matches = |c: char| chars.as_ref().map_or_else(|| is_python_space(c), |chars| chars.contains(c));
    Ok(Value::from(match args.method {
        "lstrip" => text.trim_start_matches(matches),
        "rstrip" => text.trim_end_matches(matches),
        _ => text.trim_matches(matches),
    }))
}

fn split(text: &str, args: &Args<'_>) -> Result<Value, Error> {
    let separator = args.text(0, "sep")?;
    let limit =
        args.integer(1, "maxsplit")?.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX - 1);
    let from_right = args.method == "rsplit";
    let parts: Vec<&str> = match separator.as_deref() {
        Some("") => return Err(Error::new(ErrorKind::InvalidOperation, "empty separator")),
        Some(separator) if from_right => {
            let mut parts: Vec<&str> = text.rsplitn(limit + 1, separator).collect();
            parts.reverse();
            parts
        }
        Some(separator) => text.splitn(limit + 1, separator).collect(),
        None => split_spaces(text, limit, from_right),
    };
    Ok(list_of(parts))
}

/// `split()` without a separator: runs of white space separate. After `limit` splits the remainder stays whole, but
/// for the white space on the side already worked off.
fn split_spaces(text: &str, limit: usize, from_right: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        rest = match from_right {
            true => rest.trim_end_matches(is_python_space),
            false => rest.trim_start_matches(is_python_space),
        };
        let space = match from_right {
            true => rest.rfind(is_python_space),
            false => rest.find(is_python_space),
        };
        match space.filter(|_| parts.len() < limit) {
            Some(at) if from_right => {
                let space_bytes = rest[at..].chars().next().map_or(0, char::len_utf8);
                parts.push(&rest[at + space_bytes..]);
                rest = &rest[..at];
            }
            Some(at) => {
                parts.push(&rest[..at]);
                rest = &rest[at..];
            }
            None => break,
        }
    }
    if !rest.is_empty() {
        parts.push(rest);
    }
    if from_right {
        parts.reverse();
    }
    parts
}

fn split_lines(text: &str, keep_ends: bool) -> Value {
    let is_end = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (line, taken) = match rest.find(is_end) {
            None => (rest, rest.len()),
            Some(at) if rest[at..].starts_with("\r\n") => (&rest[..at], at + 2),
            Some(at) => (&rest[..at], at + rest[at..].chars().next().map_or(0, char::len_utf8)),
        };
        lines.push(if keep_ends { &rest[..taken] } else { line });
        rest = &rest[taken..];
    }
    list_of(lines)
}

fn partition(text: &str, args: &Args<'_>) -> Result<Value, Error> {
    let separator = args.required_text(0)?;
    if separator.is_empty() {
        return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
    }
    let from_right = args.method == "rpartition";
    let found = if from_right { text.rsplit_once(&*separator) } else { text.split_once(&*separator) };
    let parts = match found {
        Some((before, after)) => [before, &separator, after],
        None if from_right => ["", "", text],
        None => [text, "", ""],
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from))))
}

fn has_affix(text: &str, args: &Args<'_>) -> Result<Value, Error> {
    let affixes = args.get(0, "").ok_or_else(|| args.type_error("takes at least 1 argument"))?;
    let text = &text[char_range(text, args)?.unwrap_or(0..0)];
    let has = |affix: &str| match args.method {
        "startswith" => text.starts_with(affix),
        _ => text.ends_with(affix),
    };
    match affixes.as_str() {
        Some(affix) => Ok(Value::from(has(affix))),
        None if affixes.is_tuple() => {
            Ok(Value::from(affixes.try_iter()?.any(|a| a.as_str().is_some_and(has))))
        }
        None => Err(args.type_error("takes a str or a tuple of str")),
    }
}

/// Byte range of Python's `start` and `end` arguments (second and third); `None` when start lies behind the end.
fn char_range(text: &str, args: &Args<'_>) -> Result<Option<std::ops::Range<usize>>, Error> {
    let length = text.chars().count() as i64;
    let clamp = |at: i64| if at < 0 { (at + length).max(0) } else { at.min(length) };
    let start = args.integer(1, "")?.unwrap_or(0);
    let end = clamp(args.integer(2, "")?.unwrap_or(length));
    if start > length || clamp(start) > end {
        return Ok(None);
    }
    let byte = |chars: i64| text.char_indices().nth(chars as usize).map_or(text.len(), |(at, _)| at);
    Ok(Some(byte(clamp(start))..byte(end)))
}

fn replace(text: &str, args: &Args<'_>) -> Result<Value, Error> {
    let (from, to) = (args.required_text(0)?, args.required_text(1)?);
    let count = args.integer(2, "count")?.and_then(|count| usize::try_from(count).ok());
    replaced(text, &from, &to, count).map(Value::from)
}

fn find(text: &str, args: &Args<'_>) -> Result<Value, Error> {
    let needle = args.required_text(0)?;
    let found = char_range(text, args)?.and_then(|range| {
        let part = &text[range.clone()];
        let at = if args.method.starts_with('r') { part.rfind(&*needle) } else { part.find(&*needle) };
        at.map(|at| text[..range.start + at].chars().count() as i64)
    });
    match found {
        None if args.method.ends_with("index") => {
            Err(Error::new(ErrorKind::InvalidOperation, "substring not found"))
        }
        found => Ok(Value::from(found.unwrap_or(-1))),
    }
}

fn join(separator: &str, args: &Args<'_>) -> Result<Value, Error> {
    let items = args.get(0, "").ok_or_else(|| args.type_error("takes an iterable"))?;
    let mut out = String::new();
    for (index, item) in iterable(items)?.try_iter()?.enumerate() {
        let text = item.as_str().ok_or_else(|| {
            let message = format!("sequence item {index}: expected str instance, {} found", item.kind());
            Error::new(ErrorKind::InvalidOperation, message)
        })?;
        budget::take((separator.len() + text.len()) as u64)?;
        if index > 0 {
            out.push_str(separator);
        }
        out.push_str(text);
    }
    Ok(Value::from(out))
}

fn str_format(text: &str, args: &[Value]) -> Result<Value, Error> {
    budget::take_format(FormatStyle::StrFormat, text, args)?;
    format(FormatStyle::StrFormat, text, args).map(Value::from)
}

fn with_kwargs(args: &Args<'_>) -> Vec<Value> {
    let mut all = args.positional.to_vec();
    let names: Vec<&str> = args.kwargs.args().collect();
    if !names.is_empty() {
        let pairs = names.iter().filter_map(|name| Some((*name, args.kwargs.get::<Value>(name).ok()?)));
        all.push(Kwargs::from_iter(pairs).into());
    }
    all
}

fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().chain(chars.flat_map(char::to_lowercase)).collect(),
        None => String::new(),
    }
}

/// `str.title`: a letter after anything that is no letter becomes a capital, the rest small.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside_word = false;
    for c in text.chars() {
        match inside_word {
            true => out.extend(c.to_lowercase()),
            false => out.extend(c.to_uppercase()),
        }
        inside_word = c.is_alphabetic();
    }
    out
}

fn swap_case(c: char) -> char {
    let mut other =
        if c.is_uppercase() { c.to_lowercase().to_string() } else { c.to_uppercase().to_string() };
    other.pop().filter(|_| other.is_empty()).unwrap_or(c)
}

fn pad(text: &str, args: &Args<'_>) -> Result<Value, Error> {
    let width = args.integer(0, "")?.ok_or_else(|| args.type_error("takes a width"))?;
    let width = usize::try_from(width).unwrap_or(0).min(MAX_PADDED_CHARS);
    let fill = args.text(1, "")?.and_then(|fill| fill.chars().next()).unwrap_or(' ');
    let padding = |fill: char| fill.to_string().repeat(width.saturating_sub(text.chars().count()));
    Ok(Value::from(match args.method {
        "center" => center(text, width, fill),
        "ljust" => format!("{text}{}", padding(fill)),
        "rjust" => format!("{}{text}", padding(fill)),
        _ => {
            let digits = text.trim_start_matches(['+', '-']);
            let sign_bytes = usize::from(digits.len() < text.len());
            format!("{}{}{}", &text[..sign_bytes], padding('0'), &text[sign_bytes..])
        }
    }))
}

/// The `str.is...` family; `None` for an unknown name.
fn is_method(text: &str, name: &str) -> Option<bool> {
    let all = |test: fn(char) -> bool| !text.is_empty() && text.chars().all(test);
    let cased = || text.chars().any(|c| c.is_uppercase() || c.is_lowercase());
    Some(match name {
        "isspace" => all(is_python_space),
        "isalpha" => all(char::is_alphabetic),
        "isalnum" => all(char::is_alphanumeric),
        "isdecimal" => all(is_decimal),
        "isdigit" => {
            all(|c| is_decimal(c) || matches!(c, '²' | '³' | '¹' | '⁰' | '⁴'..='⁹' | '₀'..='₉' | '①'..='⑨'))
        }
        "isnumeric" => all(char::is_numeric),
        "isascii" => text.is_ascii(),
        "isupper" => cased() && !text.chars().any(char::is_lowercase),
        "islower" => cased() && !text.chars().any(char::is_uppercase),
        "istitle" => cased() && title(text) == text,
        "isidentifier" => {
            let mut chars = text.chars();
            chars.next().is_some_and(|c| c.is_alphabetic() || c == '_')
                && chars.all(|c| c.is_alphanumeric() || c == '_')
        }
        _ => return None,
    })
}

/// The decimal digits (category Nd) of the scripts in common use.
fn is_decimal(c: char) -> bool {
    const ZEROS: [u32; 22] = [
        0x30, 0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xde6,
        0xe50, 0xed0, 0xf20, 0x1040, 0x1090, 0x17e0, 0x1810, 0xff10,
    ];
    ZEROS.iter().any(|zero| (*zero..zero + 10).contains(&u32::from(c)))
}

fn expand_tabs(text: &str, tab_size: usize) -> String {
    let mut out = String::with_capacity(text.len());
    let mut column = 0;
    for c in text.chars() {
        match c {
            '\t' => {
                let spaces = if tab_size == 0 { 0 } else { tab_size - column % tab_size };
                out.extend(std::iter::repeat_n(' ', spaces));
                column += spaces;
            }
            _ => {
                out.push(c);
                column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
            }
        }
    }
    out
}

/// A method of `dict`; those that change it are refused, as jinja2's sandbox refuses them.
fn dict_method(dict: &Value, args: &Args<'_>) -> Option<Result<Value, Error>> {
    let pairs = || dict.as_object().and_then(|object| object.try_iter_pairs()).into_iter().flatten();
    let pair = |(key, item)| Value::from(Tuple::from([key, item]));
    Some(match args.method {
        "get" => dict_get(dict, args),
        "items" => Ok(Value::from(pairs().map(pair).collect::<Vec<_>>())),
        "keys" => Ok(Value::from(pairs().map(|(key, _)| key).collect::<Vec<_>>())),
        "values" => Ok(Value::from(pairs().map(|(_, item)| item).collect::<Vec<_>>())),
        "copy" => Ok(dict.clone()),
        "clear" | "pop" | "popitem" | "setdefault" | "update" => Err(unsafe_method("dict", args.method)),
        _ => return None,
    })
}

fn dict_get(dict: &Value, args: &Args<'_>) -> Result<Value, Error> {
    let key = args.positional.first().ok_or_else(|| args.type_error("takes at least 1 argument"))?;
    let found = dict.as_object().and_then(|object| object.get_value(key));
    Ok(found.or_else(|| args.positional.get(1).cloned()).unwrap_or(Value::from(())))
}

/// A method of `list` or `tuple`; those that change it are refused, as jinja2's sandbox refuses them.
fn list_method(list: &Value, args: &Args<'_>) -> Option<Result<Value, Error>> {
    let wanted = || args.positional.first().cloned().unwrap_or(Value::UNDEFINED);
    Some(match args.method {
        "index" => list.try_iter().and_then(|mut items| {
            let missing =
                || Error::new(ErrorKind::InvalidOperation, format!("{:?} is not in list", wanted()));
            items.position(|item| item == wanted()).map(Value::from).ok_or_else(missing)
        }),
        "count" => list.try_iter().map(|items| Value::from(items.filter(|item| *item == wanted()).count())),
        "copy" => Ok(list.clone()),
        "append" | "clear" | "extend" | "insert" | "pop" | "remove" | "reverse" | "sort" => {
            Err(unsafe_method("list", args.method))
        }
        _ => return None,
    })
}

fn unsafe_method(kind: &str, method: &str) -> Error {
    Error::new(
        ErrorKind::InvalidOperation,
        format!("{method}() of a {kind} would change it; chat templates may not change their input"),
    )
}
