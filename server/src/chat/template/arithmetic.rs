//! Python's `+`, `~` and `*`; the calls that `operators` puts in their place.

use minijinja::value::{Rest, Tuple, ValueKind};
use minijinja::{Error, ErrorKind, HtmlEscape, Value};

use super::{budget, text};

/// Names of the three functions, in the order of how weakly their operators bind.
pub(super) const ADD: &str = "__python_add";
pub(super) const CONCAT: &str = "__python_concat";
pub(super) const MULTIPLY: &str = "__python_multiply";

/// Python's `a + b + ...`, left to right.
pub(super) fn add(operands: Rest<Value>) -> Result<Value, Error> {
    fold(operands, add_two)
}

/// Python's `a * b * ...`, left to right.
pub(super) fn multiply(operands: Rest<Value>) -> Result<Value, Error> {
    fold(operands, multiply_two)
}

/// jinja2's `a ~ b ~ ...`: the `str()` of each.
pub(super) fn concat(operands: Rest<Value>) -> Result<Value, Error> {
    let mut out = String::new();
    for operand in operands.iter() {
        text::write_str(operand, &mut out);
        budget::check()?;
    }
    Ok(Value::from(out))
}

fn fold(operands: Rest<Value>, two: fn(&Value, &Value) -> Result<Value, Error>) -> Result<Value, Error> {
    let mut operands = operands.iter().cloned();
    let first = operands.next().unwrap_or_default();
    operands.try_fold(first, |left, right| two(&left, &right))
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
        budget::take((a.len() + b.len()) as u64)?;
        return Ok(match left.is_safe() || right.is_safe() {
            true => Value::from_safe_string(escaped(left, a) + &escaped(right, b)),
            false => Value::from([a, b].concat()),
        });
    }
    if is_list(left) && is_list(right) && left.is_tuple() == right.is_tuple() {
        budget::take_elements(left)?;
        budget::take_elements(right)?;
        let items: Vec<Value> = left.try_iter()?.chain(right.try_iter()?).collect();
        return Ok(match left.is_tuple() {
            true => Value::from(Tuple::from(items)),
            false => Value::from(items),
        });
    }
    if is_number(left) && is_number(right) {
        return numbers(left, right, i128::checked_add, |a, b| a + b);
    }
    Err(unsupported('+', left, right))
}

fn multiply_two(left: &Value, right: &Value) -> Result<Value, Error> {
    if is_number(left) && is_number(right) {
        return numbers(left, right, i128::checked_mul, |a, b| a * b);
    }
    let (repeated, count) = if is_number(right) { (left, right) } else { (right, left) };
    let Ok(count) = i64::try_from(count.clone()).map(|n| n.max(0) as usize) else {
        return Err(unsupported('*', left, right));
    };
    if let Some(plain) = repeated.as_str() {
        budget::take((plain.len() as u64).saturating_mul(count as u64))?;
        return Ok(Value::from(plain.repeat(count)));
    }
    if !is_list(repeated) {
        return Err(unsupported('*', left, right));
    }
    let items: Vec<Value> = repeated.try_iter()?.collect();
    budget::take((items.len() as u64).saturating_mul(count as u64).saturating_mul(budget::ELEMENT_BYTES))?;
    let length = items.len() * count;
    let items: Vec<Value> = items.into_iter().cycle().take(length).collect();
    Ok(if repeated.is_tuple() { Value::from(Tuple::from(items)) } else { Value::from(items) })
}

fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
}

fn is_number(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Number | ValueKind::Bool)
}

/// Whole numbers stay whole; past 128 bits, and with a float, the result is a float.
fn numbers(
    left: &Value,
    right: &Value,
    whole: fn(i128, i128) -> Option<i128>,
    float: fn(f64, f64) -> f64,
) -> Result<Value, Error> {
    if text::as_float(left).or(text::as_float(right)).is_none()
        && let (Ok(a), Ok(b)) = (i128::try_from(left.clone()), i128::try_from(right.clone()))
        && let Some(result) = whole(a, b)
    {
        return Ok(i64::try_from(result).map_or_else(|_| Value::from(result), Value::from));
    }
    Ok(Value::from(float(f64::try_from(left.clone())?, f64::try_from(right.clone())?)))
}

fn unsupported(operator: char, left: &Value, right: &Value) -> Error {
    let message = format!("unsupported operand types for {operator}: {} and {}", left.kind(), right.kind());
    Error::new(ErrorKind::InvalidOperation, message)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

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
        assert!(add(Rest(vec![safe, Value::from(1)])).is_err());
    }

    #[test]
    fn numbers_are_pythons() {
        let two = |a: Value, b: Value| Rest(vec![a, b]);
        assert_eq!(add(two(1.into(), 2.into())).unwrap(), Value::from(3));
        assert_eq!(add(two(1.into(), 2.5.into())).unwrap(), Value::from(3.5));
        assert_eq!(add(two(true.into(), 2.into())).unwrap(), Value::from(3));
        assert_eq!(add(two(i64::MAX.into(), 1.into())).unwrap(), Value::from(1_i128 << 63));
        assert_eq!(multiply(two(3.into(), 4.into())).unwrap(), Value::from(12));
        assert_eq!(multiply(two("ab".into(), 2.into())).unwrap().as_str(), Some("abab"));
        assert_eq!(multiply(two(2.into(), vec![1].into())).unwrap(), Value::from(vec![1, 1]));
        assert_eq!(multiply(two("ab".into(), (-1).into())).unwrap().as_str(), Some(""));
        assert!(multiply(two("ab".into(), "c".into())).is_err());
        let mixed =
            concat(Rest(vec!["a".into(), 1.into(), true.into(), ().into(), Value::UNDEFINED])).unwrap();
        assert_eq!(mixed.as_str(), Some("a1TrueNone"));
    }
}
