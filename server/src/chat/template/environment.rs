//! The minijinja environment in which chat templates run: jinja2's settings, Python's meaning.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs, from_args};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior, Value};
use serde_json::{Map, Value as Json};

use super::clock::CivilTime;
use super::filters::{self, Generator};
use super::{TEMPLATE_FUEL, arithmetic, budget, json, methods, nesting, rewrite, text};

/// What `raise_exception` was called with; travels as the source of a minijinja error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct RaisedByTemplate(pub(super) String);

/// An environment with everything transformers gives a chat template but the template itself.
pub(super) fn python_environment() -> Environment<'static> {
    let mut environment = Environment::new();
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        environment.set_syntax(syntax);
    }
    environment.set_fuel(Some(TEMPLATE_FUEL));
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(methods::call);
    environment.set_formatter(|out, _, value| {
        let written = match value.as_str() {
            Some(text) => {
                budget::take(text.len() as u64)?;
                out.write_str(text)
            }
            None => out.write_str(&text::to_str(value)),
        };
        budget::check()?;
        written.map_err(Error::from)
    });
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("dict", dict);
    environment.add_function(arithmetic::ADD, arithmetic::add);
    environment.add_function(arithmetic::CONCAT, arithmetic::concat);
    environment.add_function(arithmetic::MULTIPLY, arithmetic::multiply);
    environment.add_filter("tojson", json::tojson);
    environment.add_filter(rewrite::ITERABLE_FILTER, filters::looped);
    environment.add_filter(nesting::ASSIGNED_FILTER, nesting::assigned);
    budget::guard_filters(&mut environment);
    filters::add_to(&mut environment);
    add_tests(&mut environment);
    environment
}

/// `variables` as template values, with a `strftime_now` that shows `now`.
pub(super) fn with_clock(variables: &Map<String, Json>, now: CivilTime) -> Value {
    let clock = Value::from_function(move |format: &str| now.strftime(format));
    let variables = variables.iter().map(|(name, value)| (Value::from(name.as_str()), from_json(value)));
    Value::from_pairs(std::iter::once((Value::from("strftime_now"), clock)).chain(variables))
}

fn from_json(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(*flag),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(integer), _) => Value::from(integer),
            (None, Some(integer)) => Value::from(integer),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => Value::from(items.iter().map(from_json).collect::<Vec<_>>()),
        Json::Object(entries) => {
            Value::from_pairs(entries.iter().map(|(key, item)| (Value::from(key.as_str()), from_json(item))))
        }
    }
}

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let message = text::to_str(message);
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(RaisedByTemplate(message)))
}

/// `dict(pairs, **entries)`.
fn dict(args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = args.into_values();
    let (positional, kwargs): (&[Value], Kwargs) = from_args(&args)?;
    let mut entries: Vec<(Value, Value)> = Vec::new();
    for pairs in positional {
        match pairs
            .as_object()
            .filter(|_| pairs.kind() == ValueKind::Map)
            .and_then(|map| map.try_iter_pairs())
        {
            Some(pairs) => entries.extend(pairs),
            None => {
                for pair in filters::iterable(pairs.clone())?.try_iter()? {
                    let [key, item] =
                        <[Value; 2]>::try_from(pair.try_iter()?.collect::<Vec<_>>()).map_err(|_| {
                            Error::new(ErrorKind::InvalidOperation, "dict() takes pairs of key and value")
                        })?;
                    entries.push((key, item));
                }
            }
        }
    }
    let names: Vec<&str> = kwargs.args().collect();
    for name in names {
        entries.push((Value::from(name), kwargs.get(name)?));
    }
    Ok(Value::from_pairs(entries))
}

/// jinja2's tests where minijinja's differ: strings and dicts are sequences and iterable, `True` is a number.
fn add_tests(environment: &mut Environment<'static>) {
    let is_generator = |value: &Value| value.downcast_object_ref::<Generator>().is_some();
    environment.add_test("iterable", |value: &Value| {
        !matches!(
            value.kind(),
            ValueKind::None | ValueKind::Bool | ValueKind::Number | ValueKind::Plain | ValueKind::Invalid
        )
    });
    environment.add_test("sequence", move |value: &Value| {
        !is_generator(value)
            && matches!(
                value.kind(),
                ValueKind::Undefined
                    | ValueKind::String
                    | ValueKind::Bytes
                    | ValueKind::Seq
                    | ValueKind::Iterable
                    | ValueKind::Map
            )
    });
    environment
        .add_test("number", |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool));
    environment.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
}
