//! From the text of one value to a [`Value`], by the flag's [`Kind`]. Errors are clauses that follow the name
//! of the flag: `'12q' is not a number; give a count of tokens such as ...`.

use serde_json::Value as Json;

use super::args::JsonMap;
use super::choices::{Choice as _, DeviceChoice, DeviceKind};
use super::flag::Kind;

/// A parsed value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    Json(JsonMap),
    List(Vec<String>),
    Device(DeviceChoice),
    /// `auto` where a number may stand.
    Auto,
}

impl Value {
    /// The value as it could be typed.
    pub fn text(&self) -> String {
        match self {
            Value::Bool(on) => on.to_string(),
            Value::Int(number) => number.to_string(),
            Value::Float(number) => number.to_string(),
            Value::Text(text) => text.clone(),
            Value::Json(map) => Json::Object(map.clone()).to_string(),
            Value::List(items) => Json::from(items.clone()).to_string(),
            Value::Device(device) => device.to_string(),
            Value::Auto => "auto".to_owned(),
        }
    }
}

/// Parses `text` as a value of this kind.
///
/// # Errors
/// A clause that names the value and what would be right.
pub fn parse_value(kind: &Kind, text: &str) -> Result<Value, String> {
    match *kind {
        Kind::Bool => parse_bool(text).map(Value::Bool),
        Kind::Int { min, max } => {
            let number = text.parse::<i128>().map_err(|_| not_a_number(kind, text))?;
            in_range(number, min, max).map(Value::Int)
        }
        Kind::Human { min, max, .. } => {
            let number = human_number(text).ok_or_else(|| not_a_number(kind, text))?;
            in_range(number, min, max).map(Value::Int)
        }
        Kind::HumanOrAuto { .. } if text == "auto" || text == "-1" => Ok(Value::Auto),
        Kind::HumanOrAuto { max, .. } => {
            let number = human_number(text).ok_or_else(|| not_a_number(kind, text))?;
            in_range(number, 1, max).map(Value::Int)
        }
        Kind::Bytes => {
            let number = human_bytes(text).ok_or_else(|| not_a_number(kind, text))?;
            in_range(number, 1, i128::from(i64::MAX)).map(Value::Int)
        }
        Kind::Float { min, max } => {
            parse_float(text, |x| min <= x && x <= max, || format!("a number from {min} to {max}"))
        }
        Kind::FloatAbove { min, max } => {
            parse_float(text, |x| min < x && x <= max, || format!("a number above {min} and at most {max}"))
        }
        Kind::Text | Kind::Path => Ok(Value::Text(text.to_owned())),
        Kind::Json => parse_json_object(text).map(Value::Json),
        Kind::List => parse_list_item(text).map(Value::List),
        Kind::Choice(words) => parse_choice(words, text).map(Value::Text),
        Kind::Device => DeviceChoice::from_text(text).map(Value::Device).ok_or_else(|| {
            let names = DeviceKind::NAMES.join(", ");
            format!("'{text}' is not a device; give one of {names}, with an index as in cuda:1 if wanted")
        }),
    }
}

/// A whole number with an optional suffix: `k m g t` are powers of 1,000, `K M G T` of 1,024.
pub fn human_number(text: &str) -> Option<i128> {
    let (digits, unit) = match text.chars().last()? {
        'k' => (&text[..text.len() - 1], 1_000),
        'm' => (&text[..text.len() - 1], 1_000_000),
        'g' => (&text[..text.len() - 1], 1_000_000_000),
        't' => (&text[..text.len() - 1], 1_000_000_000_000),
        'K' => (&text[..text.len() - 1], 1 << 10),
        'M' => (&text[..text.len() - 1], 1 << 20),
        'G' => (&text[..text.len() - 1], 1 << 30),
        'T' => (&text[..text.len() - 1], 1_i128 << 40),
        _ => return text.parse().ok(),
    };
    scaled(digits, unit)
}

/// A size in bytes: [`human_number`], or with a unit that says what it means (`8GiB`, `8GB`, `512B`).
pub fn human_bytes(text: &str) -> Option<i128> {
    let text = text.trim();
    let Some(rest) = text.strip_suffix(['b', 'B']) else { return human_number(text) };
    if let Some(prefix) = rest.strip_suffix('i') {
        human_number(&upper_last(prefix)?)
    } else if rest.ends_with(|c: char| c.is_ascii_digit()) {
        rest.parse().ok()
    } else {
        human_number(&rest.to_ascii_lowercase())
    }
}

/// A value typed after a dotted key: JSON where it reads as JSON, a human number, else the text itself.
pub fn dotted_value(text: &str) -> Json {
    if let Ok(value) = serde_json::from_str::<Json>(text) {
        return value;
    }
    if text.starts_with(|c: char| c.is_ascii_digit())
        && let Some(number) = human_number(text).and_then(|n| i64::try_from(n).ok())
    {
        return Json::from(number);
    }
    Json::from(text)
}

/// What a value of this kind may be, for errors and docs: `a count of tokens such as 8192, 8k (8,000) ...`.
pub fn expectation(kind: &Kind) -> String {
    match kind {
        Kind::Bool => "true or false".to_owned(),
        Kind::Int { min, max } => format!("a whole number {}", range_words(*min, *max)),
        Kind::Human { what, .. } => format!("{what} such as 8192, 8k (8,000) or 8K (8,192)"),
        Kind::HumanOrAuto { what, .. } => {
            format!("{what} such as 8192, 8k (8,000) or 8K (8,192), or auto")
        }
        Kind::Bytes => "a size such as 8GiB, 8G (the same), 8GB or 8589934592".to_owned(),
        Kind::Float { min, max } if max.is_infinite() => format!("a number of at least {min}"),
        Kind::Float { min, max } => format!("a number from {min} to {max}"),
        Kind::FloatAbove { min, max } if max.is_infinite() => format!("a number above {min}"),
        Kind::FloatAbove { min, max } => format!("a number above {min} and at most {max}"),
        Kind::Text => "a text".to_owned(),
        Kind::Path => "a path".to_owned(),
        Kind::Json => "a JSON object such as '{\"key\": 1}'".to_owned(),
        Kind::List => "one or more words, or a JSON list of them".to_owned(),
        Kind::Choice(words) => format!("one of {}", words.join(", ")),
        Kind::Device => "auto, cpu, cuda, rocm, wgpu or null, with an index as in cuda:1".to_owned(),
    }
}

fn range_words(min: i128, max: i128) -> String {
    if max >= i128::from(i32::MAX) { format!("of at least {min}") } else { format!("from {min} to {max}") }
}

fn upper_last(text: &str) -> Option<String> {
    let last = text.chars().last().filter(char::is_ascii_alphabetic)?;
    Some(format!("{}{}", &text[..text.len() - 1], last.to_ascii_uppercase()))
}

/// `digits` (with a decimal point if wanted) times `unit`, when that is a whole number.
fn scaled(digits: &str, unit: i128) -> Option<i128> {
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if fraction.len() > 12 || !fraction.chars().all(|c| c.is_ascii_digit()) {
        return None;
    }
    if digits.contains('.') && fraction.is_empty() {
        return None;
    }
    let denominator = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
    let all: i128 = format!("{whole}{fraction}").parse().ok()?;
    let product = all.checked_mul(unit)?;
    (product % denominator == 0).then_some(product / denominator)
}

fn parse_bool(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err(format!("'{text}' is neither true nor false")),
    }
}

fn not_a_number(kind: &Kind, text: &str) -> String {
    format!("'{text}' is not a number; give {}", expectation(kind))
}

fn in_range(number: i128, min: i128, max: i128) -> Result<i128, String> {
    if (min..=max).contains(&number) {
        Ok(number)
    } else if number < min {
        Err(format!("{number} is too small; the least is {min}"))
    } else {
        Err(format!("{number} is too large; the most is {max}"))
    }
}

fn parse_float(
    text: &str,
    within: impl Fn(f64) -> bool,
    wanted: impl Fn() -> String,
) -> Result<Value, String> {
    match text.parse::<f64>() {
        Err(_) => Err(format!("'{text}' is not a number; give {}", wanted())),
        Ok(number) if within(number) => Ok(Value::Float(number)),
        Ok(_) => Err(format!("{text} is out of range; give {}", wanted())),
    }
}

fn parse_choice(words: &[&str], text: &str) -> Result<String, String> {
    let found = words.iter().find(|word| word.eq_ignore_ascii_case(text));
    found.map(|word| (*word).to_owned()).ok_or_else(|| {
        let hint = super::suggest::nearest(text, words.iter().copied());
        let hint = hint.map(|word| format!(" (did you mean {word}?)")).unwrap_or_default();
        format!("'{text}' is not known{hint}; give one of {}", words.join(", "))
    })
}

fn parse_list_item(text: &str) -> Result<Vec<String>, String> {
    if !text.trim_start().starts_with('[') {
        return Ok(vec![text.to_owned()]);
    }
    // A word such as `[ngram]` is no JSON list; it stands for itself.
    let Ok(items) = serde_json::from_str::<Vec<Json>>(text) else { return Ok(vec![text.to_owned()]) };
    Ok(items.iter().map(json_word).collect())
}

/// A JSON value as one word of a list: text without its quotes.
pub fn json_word(item: &Json) -> String {
    match item {
        Json::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn parse_json_object(text: &str) -> Result<JsonMap, String> {
    let parsed = serde_json::from_str::<Json>(text)
        .or_else(|error| serde_json::from_str(&expand_human_numbers(text)).map_err(|_| error));
    match parsed {
        Ok(Json::Object(map)) => Ok(map),
        Ok(Json::Null) => Ok(JsonMap::new()),
        Ok(_) => Err(format!("'{text}' is JSON but no object; give {}", expectation(&Kind::Json))),
        Err(error) => Err(format!("'{text}' is not JSON ({error}); give {}", expectation(&Kind::Json))),
    }
}

/// Replaces `32k` and its like outside strings with plain numbers: `{"max_model_len": 32k}`.
fn expand_human_numbers(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut word = String::new();
    let (mut in_string, mut escaped) = (false, false);
    for c in text.chars() {
        if !in_string && (c.is_ascii_alphanumeric() || c == '.') {
            word.push(c);
            continue;
        }
        flush_word(&mut word, &mut out);
        if c == '"' && !escaped {
            in_string = !in_string;
        }
        escaped = in_string && c == '\\' && !escaped;
        out.push(c);
    }
    flush_word(&mut word, &mut out);
    out
}

fn flush_word(word: &mut String, out: &mut String) {
    match human_number(word).filter(|_| word.starts_with(|c: char| c.is_ascii_digit())) {
        Some(number) => out.push_str(&number.to_string()),
        None => out.push_str(word),
    }
    word.clear();
}
