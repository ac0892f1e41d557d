//! How much text one rendering may make, intermediate values counted.
//!
//! Instructions are bounded by minijinja's fuel; memory is not: `x ~ x` doubles a string with one instruction. So
//! everything here that makes text or lists takes its bytes from a budget that is open on this thread while a
//! template renders. It grows with the input (a template may copy the prompt so far for each message), and what is
//! spent never comes back, so it bounds the memory that is live as well as the time spent copying.

use std::cell::Cell;
use std::io;

use minijinja::formatting::FormatStyle;
use minijinja::value::{Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, Value};
use serde_json::Value as Json;

use super::text;

/// Bytes any rendering may make.
const LEAST_BYTES: u64 = 64 << 20;
/// Bytes no rendering may make.
const MOST_BYTES: u64 = 2 << 30;
/// What an element of a list counts.
pub(super) const ELEMENT_BYTES: u64 = 24;
/// Largest width or count that a filter takes.
const MAX_WIDTH: u64 = 1 << 20;

/// Filters of minijinja that print their input: they take its whole text from the budget before they run.
const PRINTING: [&str; 10] =
    ["capitalize", "e", "escape", "format", "indent", "lines", "lower", "pprint", "title", "upper"];
/// Those that copy a list: they take its elements.
const COPYING: [&str; 10] =
    ["batch", "chain", "dictsort", "groupby", "reverse", "slice", "sort", "sum", "unique", "zip"];
/// Those of either whose result is as large as a number among their arguments says.
const PADDING: [&str; 3] = ["batch", "indent", "slice"];

thread_local! {
    static LEFT: Cell<Option<u64>> = const { Cell::new(None) };
    static SPENT: Cell<bool> = const { Cell::new(false) };
}

/// A budget that is open until this is dropped.
pub(super) struct Open(());

impl Open {
    /// Whether something asked for more than was left.
    pub(super) fn is_spent(&self) -> bool {
        is_spent()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        LEFT.set(None);
        SPENT.set(false);
    }
}

/// Opens this thread's budget for a rendering of so much input in so many messages.
pub(super) fn open(input_bytes: u64, messages: usize) -> Open {
    let wanted = input_bytes.saturating_mul(4).saturating_mul(messages as u64 + 16);
    LEFT.set(Some(LEAST_BYTES.saturating_add(wanted).min(MOST_BYTES)));
    SPENT.set(false);
    Open(())
}

/// What a value counts as input.
pub(super) fn bytes_of(json: &Json) -> u64 {
    ELEMENT_BYTES
        + match json {
            Json::String(text) => text.len() as u64,
            Json::Array(items) => items.iter().map(bytes_of).sum(),
            Json::Object(entries) => {
                entries.iter().map(|(key, item)| key.len() as u64 + bytes_of(item)).sum()
            }
            _ => 0,
        }
}

/// What a template prints, on the budget.
#[derive(Default)]
pub(super) struct Output(Vec<u8>);

impl Output {
    /// All of it.
    pub(super) fn into_text(self) -> String {
        // Whole strings were written, so nothing is replaced.
        String::from_utf8(self.0).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
    }
}

impl io::Write for &mut Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        take(bytes.len() as u64).map_err(io::Error::other)?;
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Takes `bytes`; without an open budget there is no bound.
pub(super) fn take(bytes: u64) -> Result<(), Error> {
    match LEFT.get() {
        Some(left) if left < bytes || SPENT.get() => SPENT.set(true),
        Some(left) => LEFT.set(Some(left - bytes)),
        None => {}
    }
    check()
}

/// Takes a string's bytes, or the elements of a list that is about to be made.
pub(super) fn take_elements(list: &Value) -> Result<(), Error> {
    match list.kind() {
        ValueKind::String => take(list.as_str().map_or(0, str::len) as u64),
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => {
            take((list.len().unwrap_or(0) as u64).saturating_mul(ELEMENT_BYTES))
        }
        _ => Ok(()),
    }
}

/// An error once the budget is spent.
pub(super) fn check() -> Result<(), Error> {
    match SPENT.get() {
        true => Err(Error::new(ErrorKind::InvalidOperation, "the budget of text is spent")),
        false => Ok(()),
    }
}

/// Spends all of it.
pub(super) fn exhaust() {
    SPENT.set(LEFT.get().is_some());
}

/// Whether it is spent: what writes text without a result stops then.
pub(super) fn is_spent() -> bool {
    SPENT.get()
}

/// Puts minijinja's own filters that make text or lists under the budget.
pub(super) fn guard_filters(environment: &mut Environment<'static>) {
    for name in PRINTING.into_iter().chain(COPYING) {
        environment.add_filter(name, move |args: Rest<ValueOrKwargs>| {
            let args = args.into_values();
            take_arguments(name, &args)?;
            let result = BUILTINS.with(|builtins| builtins.empty_state().apply_filter(name, &args))?;
            take_elements(&result)?;
            Ok::<_, Error>(result)
        });
    }
}

thread_local! {
    static BUILTINS: Environment<'static> = Environment::new();
}

fn take_arguments(name: &str, args: &[Value]) -> Result<(), Error> {
    let Some((first, rest)) = args.split_first() else { return Ok(()) };
    match name {
        "format" => return take_format(FormatStyle::Printf, first.as_str().unwrap_or_default(), rest),
        // A sum of lists, or of strings, is as long as all of them.
        "sum" => first.try_iter()?.try_for_each(|item| take_elements(&item))?,
        _ if PRINTING.contains(&name) => take(text_bytes(first)?)?,
        _ => args.iter().try_for_each(take_elements)?,
    }
    let numbers = rest.iter().flat_map(numbers_of).max().filter(|_| PADDING.contains(&name));
    let Some(largest) = numbers else { return Ok(()) };
    if largest > MAX_WIDTH {
        return Err(too_wide(name));
    }
    // `indent` pads every line with so many bytes; the others make a list of so many elements.
    let each = match name {
        "indent" => first.as_str().map_or(1, |text| text.lines().count() as u64 + 1),
        _ => ELEMENT_BYTES,
    };
    take(largest.saturating_mul(each))
}

/// Takes what a format string and its arguments can make at most: each field may be as wide as it says, and may print
/// the largest argument.
pub(super) fn take_format(style: FormatStyle, text: &str, args: &[Value]) -> Result<(), Error> {
    let fields: Vec<&str> = match style {
        FormatStyle::Printf => text.split('%').skip(1).map(printf_field).collect(),
        _ => text.split('{').skip(1).map(|field| field.split('}').next().unwrap_or("")).collect(),
    };
    let mut widest = 0;
    for field in &fields {
        let runs = field.split(|c: char| !c.is_ascii_digit()).filter(|run| !run.is_empty());
        widest = runs.map(|run| run.parse().unwrap_or(u64::MAX)).fold(widest, u64::max);
        if field.contains('*') {
            widest = args.iter().flat_map(numbers_of).fold(widest, u64::max);
        }
    }
    if widest > MAX_WIDTH {
        return Err(too_wide("format"));
    }
    let mut largest = 0;
    for value in args {
        largest = text_bytes(value)?.max(largest);
    }
    take((fields.len() as u64).saturating_mul(widest + largest).saturating_add(text.len() as u64))
}

/// Flags, width and precision of the printf field that `text` starts with.
fn printf_field(text: &str) -> &str {
    let named = text.strip_prefix('(').and_then(|rest| rest.split_once(')'));
    let spec = named.map_or(text, |(_, rest)| rest);
    let end = spec.find(|c: char| !matches!(c, '0'..='9' | '-' | '+' | ' ' | '#' | '.' | '*'));
    &spec[..end.unwrap_or(spec.len())]
}

/// Bytes of a value's text; what a list prints is taken from the budget while it is counted.
fn text_bytes(value: &Value) -> Result<u64, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.len() as u64);
    }
    let bytes = text::to_str(value).len() as u64;
    check().map(|()| bytes)
}

/// The whole numbers of an argument: itself, or those of keyword arguments.
fn numbers_of(value: &Value) -> Vec<u64> {
    let number = |value: &Value| match value.kind() {
        ValueKind::Number => {
            Some(i128::try_from(value.clone()).map_or(u64::MAX, |n| n.unsigned_abs() as u64))
        }
        _ => None,
    };
    let pairs =
        value.as_object().filter(|_| value.kind() == ValueKind::Map).and_then(|map| map.try_iter_pairs());
    match pairs {
        Some(pairs) => pairs.filter_map(|(_, item)| number(&item)).collect(),
        None => number(value).into_iter().collect(),
    }
}

fn too_wide(name: &str) -> Error {
    let message = format!("{name}: a width or count is above {MAX_WIDTH}, the most that is taken");
    Error::new(ErrorKind::InvalidOperation, message)
}
