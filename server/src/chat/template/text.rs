//! Python's `str()` and `repr()` of the values a template handles.

use minijinja::Value;
use minijinja::value::ValueKind;

use super::budget;
use super::filters::Generator;

/// Nesting at which `repr` stops; JSON bodies are bounded to less by their parser.
const MAX_REPR_DEPTH: usize = 200;

/// Appends Python's `str(value)`; an undefined value prints as nothing, as jinja2 prints it. Once the rendering's
/// budget is spent it appends no more; whoever can fail asks `budget::check`.
pub(super) fn write_str(value: &Value, out: &mut String) {
    match value.as_str() {
        Some(text) if budget::take(text.len() as u64).is_ok() => out.push_str(text),
        Some(_) => {}
        None if value.is_undefined() => {}
        None => write_repr(value, out, 0),
    }
}

/// Python's `str(value)`.
pub(super) fn to_str(value: &Value) -> String {
    let mut out = String::new();
    write_str(value, &mut out);
    out
}

/// Python's `repr` of a float: the shortest digits that read back, scientific below 1e-4 and from 1e16 on.
pub(super) fn float_repr(value: f64) -> String {
    if value.is_nan() {
        return "nan".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.into();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{value}");
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// A number that is a float and no integer; `None` for anything else.
pub(super) fn as_float(value: &Value) -> Option<f64> {
    match value.kind() == ValueKind::Number && !value.is_integer() {
        true => f64::try_from(value.clone()).ok(),
        false => None,
    }
}

/// Characters that Python's `str.isspace` accepts: Unicode white space and the four separators of ASCII.
pub(super) fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn write_repr(value: &Value, out: &mut String, depth: usize) {
    if depth > MAX_REPR_DEPTH {
        // Nothing nests so deep but what holds itself.
        budget::exhaust();
        return;
    }
    let text_bytes = value.as_str().map_or(0, str::len) as u64;
    if budget::take(budget::ELEMENT_BYTES + text_bytes).is_err() {
        return;
    }
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::String => write_quoted(value.as_str().unwrap_or_default(), out),
        ValueKind::Number => match as_float(value) {
            Some(number) => out.push_str(&float_repr(number)),
            None => out.push_str(&value.to_string()),
        },
        ValueKind::Map => write_dict(value, out, depth),
        ValueKind::Seq | ValueKind::Iterable if value.downcast_object_ref::<Generator>().is_none() => {
            write_list(value, out, depth);
        }
        _ => out.push_str(&value.to_string()),
    }
}

fn write_dict(value: &Value, out: &mut String, depth: usize) {
    out.push('{');
    let pairs = value.as_object().and_then(|object| object.try_iter_pairs());
    for (index, (key, item)) in pairs.into_iter().flatten().enumerate() {
        if budget::is_spent() {
            return;
        }
        if index > 0 {
            out.push_str(", ");
        }
        write_repr(&key, out, depth + 1);
        out.push_str(": ");
        write_repr(&item, out, depth + 1);
    }
    out.push('}');
}

fn write_list(value: &Value, out: &mut String, depth: usize) {
    let is_tuple = value.is_tuple();
    out.push(if is_tuple { '(' } else { '[' });
    let mut count = 0;
    for item in value.try_iter().into_iter().flatten() {
        if budget::is_spent() {
            return;
        }
        if count > 0 {
            out.push_str(", ");
        }
        write_repr(&item, out, depth + 1);
        count += 1;
    }
    if is_tuple && count == 1 {
        out.push(',');
    }
    out.push(if is_tuple { ')' } else { ']' });
}

fn write_quoted(text: &str, out: &mut String) {
    use std::fmt::Write as _;
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        let code = u32::from(c);
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if c == quote => out.extend(['\\', c]),
            _ if is_printable(c) => out.push(c),
            _ => {
                let _ = match code {
                    0..=0xff => write!(out, "\\x{code:02x}"),
                    0x100..=0xffff => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push(quote);
}

/// `str.isprintable` for the characters that text really holds: no controls, no separators but the space, no
/// format characters, surrogates or private use.
fn is_printable(c: char) -> bool {
    c == ' '
        || !(c.is_control()
            || c.is_whitespace()
            || matches!(u32::from(c),
                0xad | 0x600..=0x605 | 0x61c | 0x6dd | 0x70f | 0x180e | 0x200b..=0x200f | 0x202a..=0x202e
                | 0x2060..=0x206f | 0xe000..=0xf8ff | 0xfeff | 0xfff0..=0xfffb | 0xe0000..=0x10ffff))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_print_as_in_python() {
        let cases = [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.1, "0.1"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.25e300, "1.25e+300"),
            (123456.789, "123456.789"),
            (f64::NAN, "nan"),
            (f64::NEG_INFINITY, "-inf"),
        ];
        for (number, expected) in cases {
            assert_eq!(float_repr(number), expected);
        }
    }

    #[test]
    fn strings_quote_as_in_python() {
        let cases = [
            ("it's", "\"it's\""),
            ("a\"b'c", "'a\"b\\'c'"),
            ("\u{1}\n\t\u{7f}\u{a0}é🎉", "'\\x01\\n\\t\\x7f\\xa0é🎉'"),
            ("\u{200b}\u{2028}\u{e0001}", "'\\u200b\\u2028\\U000e0001'"),
        ];
        for (text, expected) in cases {
            let mut out = String::new();
            write_quoted(text, &mut out);
            assert_eq!(out, expected);
        }
    }
}
