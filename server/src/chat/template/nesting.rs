//! How deep the values of a template may nest, and that none holds itself.
//!
//! minijinja prints, compares and drops a value by recursion, so one that nests a hundred thousand deep
//! (`{% set n.l = [n.l] %}` in a loop), or a namespace that is its own attribute, would overflow the stack and end the
//! process. Such values grow by assignment only, so each assigned value passes through a filter that looks.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// Name of the filter that `rewrite` puts behind every assigned expression.
pub(super) const ASSIGNED_FILTER: &str = "__python_assigned";

/// Deepest nesting of a value; JSON bodies are bounded to less by their parser.
const MAX_DEPTH: usize = 200;
/// How many values the filter looks at, so that appending to a long list stays cheap.
const MAX_VISITS: usize = 1_000;
/// How many elements it looks at from either end of a list; what grows, grows at an end.
const ENDS: usize = 4;

/// `value`, if it may be assigned; `to_attribute` when it goes into a namespace, which may hold no other.
pub(super) fn assigned(value: Value, to_attribute: Option<bool>) -> Result<Value, Error> {
    let mut waiting = vec![(value.clone(), 0)];
    for _ in 0..MAX_VISITS {
        let Some((next, depth)) = waiting.pop() else { break };
        if depth > MAX_DEPTH {
            return Err(refusal(&format!("a value is nested more than {MAX_DEPTH} deep")));
        }
        if is_namespace(&next) {
            match to_attribute {
                Some(true) => return Err(refusal("a namespace may not hold a namespace")),
                _ => continue,
            }
        }
        push_children(&next, depth + 1, &mut waiting);
    }
    Ok(value)
}

fn push_children(value: &Value, depth: usize, waiting: &mut Vec<(Value, usize)>) {
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            let length = value.len().unwrap_or(0);
            let ends = (0..length.min(ENDS)).chain(length.saturating_sub(ENDS).max(ENDS)..length);
            waiting.extend(ends.filter_map(|at| value.get_item_by_index(at).ok()).map(|item| (item, depth)));
        }
        ValueKind::Map => {
            let pairs = value.as_object().and_then(|map| map.try_iter_pairs());
            waiting.extend(pairs.into_iter().flatten().take(2 * ENDS).map(|(_, item)| (item, depth)));
        }
        _ => {}
    }
}

fn is_namespace(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("::Namespace"))
}

fn refusal(why: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, why.to_owned())
}
