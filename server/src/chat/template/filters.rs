//! Filters whose jinja2 meaning differs from minijinja's, or that minijinja lacks.

use std::sync::Arc;

use minijinja::value::{Enumerator, Kwargs, Object, ObjectRepr, Rest, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters};

use super::budget;
use super::text::{is_python_space, to_str};

/// The result of `map`, `select`, `reject` and their kin: iterable, but without a length, an index or JSON, since
/// jinja2 gives a Python generator there.
#[derive(Debug)]
pub(super) struct Generator(Vec<Value>);

impl Object for Generator {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    /// A generator has no items to look up; without this, minijinja would count through them.
    fn get_value(self: &Arc<Self>, _: &Value) -> Option<Value> {
        Some(Value::UNDEFINED)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.0.clone())
    }

    fn is_true(self: &Arc<Self>) -> bool {
        true
    }

    fn render(self: &Arc<Self>, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("<generator object>")
    }
}

/// Adds every filter of this module to `environment`.
pub(super) fn add_to(environment: &mut Environment<'static>) {
    add_generators(environment);
    environment.add_filter("string", |value: &Value| match value.kind() {
        ValueKind::String => Ok(value.clone()),
        _ => {
            let text = to_str(value);
            budget::check().map(|()| Value::from(text))
        }
    });
    environment.add_filter("trim", trim);
    environment.add_filter("replace", |text: &Value, from: &Value, to: &Value, count: Option<usize>| {
        let (text, from, to) = (to_str(text), to_str(from), to_str(to));
        replaced(&text, &from, &to, count)
    });
    environment.add_filter(
        "int",
        |state: &State, value: &Value, default: Option<Value>, base: Option<u32>, kwargs: Kwargs| {
            let default = default.or(kwargs.get::<Option<Value>>("default")?).unwrap_or(Value::from(0));
            let base = base.or(kwargs.get::<Option<u32>>("base")?);
            Ok::<_, Error>(
                filters::int(state, value, Some(default.clone()), base, no_kwargs()?).unwrap_or(default),
            )
        },
    );
    environment.add_filter(
        "float",
        |state: &State, value: &Value, default: Option<Value>, kwargs: Kwargs| {
            let default = default.or(kwargs.get::<Option<Value>>("default")?).unwrap_or(Value::from(0.0));
            Ok::<_, Error>(
                filters::float(state, value, Some(default.clone()), no_kwargs()?).unwrap_or(default),
            )
        },
    );
    environment.add_filter("join", join);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_filter("list", |state: &State, value: Value| filters::list(state, iterable(value)?));
    environment.add_filter("first", |value: &Value| match value.kind() {
        ValueKind::Undefined => Ok(Value::UNDEFINED),
        ValueKind::Map => Ok(value.try_iter()?.next().unwrap_or(Value::UNDEFINED)),
        _ => filters::first(value),
    });
    environment.add_filter("last", |value: Value| match value.kind() {
        ValueKind::Undefined => Ok(Value::UNDEFINED),
        ValueKind::Map => Ok(value.try_iter()?.last().unwrap_or(Value::UNDEFINED)),
        _ if is_generator(&value) => Err(not_a("generator", "reversible")),
        _ => filters::last(value),
    });
    environment.add_filter("items", |value: &Value| match value.kind() {
        ValueKind::Undefined => Ok(Value::from(Vec::<Value>::new())),
        _ => filters::items(value),
    });
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("wordcount", |text: &str| text.split_whitespace().count());
    environment.add_filter("center", |text: &str, width: Option<usize>| {
        super::methods::center(text, width.unwrap_or(80), ' ')
    });
}

/// `str.replace`, its result taken from the budget before it is made.
pub(super) fn replaced(text: &str, from: &str, to: &str, count: Option<usize>) -> Result<String, Error> {
    let places = text.matches(from).count().min(count.unwrap_or(usize::MAX));
    budget::take((places as u64).saturating_mul(to.len() as u64).saturating_add(text.len() as u64))?;
    Ok(text.replacen(from, to, places))
}

/// The iterable of a `for` whose body holds so many bytes of plain text: each turn may print them.
pub(super) fn looped(value: Value, body_bytes: Option<u64>) -> Result<Value, Error> {
    let value = iterable(value)?;
    budget::take((value.len().unwrap_or(0) as u64).saturating_mul(body_bytes.unwrap_or(0)))?;
    Ok(value)
}

/// `value`, or Python's `TypeError` where Python can't iterate and minijinja would see an empty list.
pub(super) fn iterable(value: Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::None => Err(not_a("NoneType", "iterable")),
        _ => Ok(value),
    }
}

fn no_kwargs() -> Result<Kwargs, Error> {
    from_args::<(Kwargs,)>(&[]).map(|(kwargs,)| kwargs)
}

fn not_a(kind: &str, property: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("'{kind}' object is not {property}"))
}

fn is_generator(value: &Value) -> bool {
    value.downcast_object_ref::<Generator>().is_some()
}

/// jinja2's lazy filters take anything false, `none` too, for an empty list.
fn or_empty(value: Value) -> Value {
    if value.is_true() { value } else { Value::from(Vec::<Value>::new()) }
}

fn add_generators(environment: &mut Environment<'static>) {
    environment.add_filter("map", |state: &mut State, value: Value, args: Rest<ValueOrKwargs>| {
        Ok::<_, Error>(Value::from_object(Generator(filters::map(state, or_empty(value), args)?)))
    });
    type Select = fn(
        &mut State,
        Value,
        Option<std::borrow::Cow<'_, str>>,
        Rest<ValueOrKwargs>,
    ) -> Result<Vec<Value>, Error>;
    let selects: [(&str, Select); 2] = [("select", filters::select), ("reject", filters::reject)];
    for (name, filter) in selects {
        environment.add_filter(
            name,
            move |state: &mut State, value: Value, test: Option<String>, args: Rest<ValueOrKwargs>| {
                let kept = filter(state, or_empty(value), test.map(Into::into), args)?;
                Ok::<_, Error>(Value::from_object(Generator(kept)))
            },
        );
    }
    type SelectAttr = fn(
        &mut State,
        Value,
        std::borrow::Cow<'_, str>,
        Option<std::borrow::Cow<'_, str>>,
        Rest<ValueOrKwargs>,
    ) -> Result<Vec<Value>, Error>;
    let selects: [(&str, SelectAttr); 2] =
        [("selectattr", filters::selectattr), ("rejectattr", filters::rejectattr)];
    for (name, filter) in selects {
        environment.add_filter(
            name,
            move |state: &mut State,
                  value: Value,
                  attr: String,
                  test: Option<String>,
                  args: Rest<ValueOrKwargs>| {
                let kept = filter(state, or_empty(value), attr.into(), test.map(Into::into), args)?;
                Ok::<_, Error>(Value::from_object(Generator(kept)))
            },
        );
    }
}

/// `str.strip` over the text of any value.
fn trim(value: &Value, chars: Option<String>) -> String {
    let text = to_str(value);
    match chars {
        Some(chars) => text.trim_matches(|c| chars.contains(c)).to_owned(),
        None => text.trim_matches(is_python_space).to_owned(),
    }
}

/// `join(value, d='', attribute=None)`: the items' `str()`.
fn join(value: Value, args: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let args = args.into_values();
    let (positional, kwargs): (&[Value], Kwargs) = from_args(&args)?;
    let separator = match positional.first() {
        Some(separator) => Some(separator.clone()),
        None => kwargs.get::<Option<Value>>("d")?,
    };
    let attribute = match positional.get(1) {
        Some(attribute) => Some(attribute.clone()),
        None => kwargs.get::<Option<Value>>("attribute")?,
    };
    kwargs.assert_all_used()?;
    let separator = separator.as_ref().map(to_str).unwrap_or_default();
    let mut out = String::new();
    for (index, item) in iterable(value)?.try_iter()?.enumerate() {
        if index > 0 {
            out.push_str(&separator);
        }
        let item = match &attribute {
            Some(attribute) => item.get_item(attribute)?,
            None => item,
        };
        super::text::write_str(&item, &mut out);
        budget::take(separator.len() as u64)?;
    }
    Ok(out)
}

fn length(value: &Value) -> Result<usize, Error> {
    match value.kind() {
        ValueKind::Undefined => Ok(0),
        ValueKind::None => Err(type_without_len("NoneType")),
        _ if is_generator(value) => Err(type_without_len("generator")),
        _ => filters::length(value),
    }
}

fn type_without_len(kind: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("object of type '{kind}' has no len()"))
}

/// `default(value, default_value='', boolean=False)`.
fn default(value: Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = args.into_values();
    let (positional, kwargs): (&[Value], Kwargs) = from_args(&args)?;
    let other = match positional.first() {
        Some(other) => Some(other.clone()),
        None => kwargs.get::<Option<Value>>("default_value")?,
    };
    let boolean = match positional.get(1) {
        Some(flag) => flag.is_true(),
        None => kwargs.get::<Option<Value>>("boolean")?.is_some_and(|flag| flag.is_true()),
    };
    kwargs.assert_all_used()?;
    match value.is_undefined() || (boolean && !value.is_true()) {
        true => Ok(other.unwrap_or_else(|| Value::from(""))),
        false => Ok(value),
    }
}
