//! One value per flag: the command line wins over the environment, the environment over the `--config` file,
//! the file over the default. Here a flag's status takes effect, and every value is checked.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value as Json;

use super::args::{JsonMap, Secret};
use super::choices::{Choice, DeviceChoice};
use super::commands::CommandSpec;
use super::error::CliError;
use super::flag::{Flag, Group, Kind, Map, Mapped, Status};
use super::lex::Lexed;
use super::sources::{Assignment, Env, from_environment, from_file};
use super::value::{Value, dotted_value, parse_value};

/// Every flag of a command with its value.
#[derive(Debug)]
pub struct Resolved {
    values: BTreeMap<&'static str, Given>,
    pub notices: Vec<String>,
    /// Flags that were asked for, so that a test can tell which rows nobody reads.
    read: RefCell<BTreeSet<String>>,
}

#[derive(Debug)]
struct Given {
    value: Option<Value>,
    /// Empty: the default.
    subject: String,
}

/// Resolves every flag of `spec`.
///
/// # Errors
/// A value that is wrong, out of range, or not supported yet; a `--config` file that cannot be read.
pub fn resolve(spec: &'static CommandSpec, lexed: Lexed, env: Env<'_>) -> Result<Resolved, CliError> {
    let mut typed: Vec<Assignment> = lexed.sets.into_iter().map(Assignment::from).collect();
    if let Some(word) = lexed.positional {
        add_positional(spec, word, &mut typed)?;
    }
    let (environment, mut notices) = from_environment(spec, env);
    let file = match config_path(&typed).or_else(|| config_path(&environment)) {
        Some(path) => from_file(spec, &path)?,
        None => Vec::new(),
    };
    let mut layers = [file, environment, typed];
    for layer in &mut layers {
        check_refused(layer)?;
        note_statuses(layer, &mut notices);
        expand_mapped(spec, layer, &mut notices)?;
        rename_values(layer, &mut notices);
    }
    let mut values = BTreeMap::new();
    for flag in spec.flags() {
        values.insert(flag.name, value_of(flag, &layers)?);
    }
    let mut seen = BTreeSet::new();
    notices.retain(|notice| seen.insert(notice.clone()));
    Ok(Resolved { values, notices, read: RefCell::default() })
}

fn add_positional(
    spec: &'static CommandSpec,
    word: String,
    typed: &mut Vec<Assignment>,
) -> Result<(), CliError> {
    let super::commands::Positional::Flag(name) = spec.positional else { return Ok(()) };
    let Some(flag) = spec.flag(name) else { return Ok(()) };
    if let Some(other) = typed.iter().find(|a| a.flag.name == name && a.value != word) {
        return Err(CliError::new(
            other.subject.clone(),
            format!("'{}' and the word '{word}' name two models; give one", other.value),
        ));
    }
    typed.push(Assignment {
        flag,
        subject: name.to_uppercase(),
        keys: Vec::new(),
        append: false,
        value: word,
    });
    Ok(())
}

fn config_path(layer: &[Assignment]) -> Option<String> {
    layer.iter().rev().find(|a| a.flag.name == "config").map(|a| a.value.clone())
}

fn check_refused(layer: &[Assignment]) -> Result<(), CliError> {
    for a in layer {
        if let Status::Refused(instead) = a.flag.status {
            return Err(CliError::new(a.subject.clone(), format!("is not supported; {instead}")));
        }
    }
    Ok(())
}

fn note_statuses(layer: &[Assignment], notices: &mut Vec<String>) {
    for a in layer {
        match a.flag.status {
            Status::Note(why) | Status::Accepted(why) => {
                notices.push(format!("{}: without effect: {why}", a.subject));
            }
            _ => {}
        }
    }
}

/// Replaces older names by what they are called now, in front of the others, so that a current name wins.
fn expand_mapped(
    spec: &'static CommandSpec,
    layer: &mut Vec<Assignment>,
    notices: &mut Vec<String>,
) -> Result<(), CliError> {
    let (older, current): (Vec<_>, Vec<_>) =
        layer.drain(..).partition(|a| matches!(a.flag.status, Status::Mapped(_)));
    for a in older {
        let Status::Mapped(map) = a.flag.status else { continue };
        match map_value(map, &a.value) {
            Mapped::Set(target, value) => {
                let negated = matches!(map, Map::Negate(_)) && value == "false";
                let no = if negated { "no-" } else { "" };
                notices.push(format!("{}: now called --{no}{target}", a.subject));
                layer.push(mapped_assignment(spec, &a, target, value));
            }
            Mapped::Nothing(why) => notices.push(format!("{}: without effect: {why}", a.subject)),
            Mapped::Refused(instead) => {
                return Err(CliError::new(a.subject, format!("'{}' is not supported; {instead}", a.value)));
            }
        }
    }
    layer.extend(current);
    Ok(())
}

fn map_value(map: Map, value: &str) -> Mapped {
    match map {
        Map::To(target) => Mapped::Set(target, value.to_owned()),
        Map::Negate(target) => {
            let on = matches!(parse_value(&Kind::Bool, value), Ok(Value::Bool(true)));
            Mapped::Set(target, (!on).to_string())
        }
        Map::By(_, map) => map(value),
    }
}

fn mapped_assignment(
    spec: &'static CommandSpec,
    older: &Assignment,
    target: &'static str,
    value: String,
) -> Assignment {
    let (name, keys) = match target.split_once('.') {
        Some((name, key)) => (name, vec![key.to_owned()]),
        None => (target, Vec::new()),
    };
    // A target outside the command's groups means nothing there: the older row then stands for itself.
    let flag = spec.flag(name).unwrap_or(older.flag);
    Assignment { flag, subject: older.subject.clone(), keys, append: false, value }
}

fn rename_values(layer: &mut [Assignment], notices: &mut Vec<String>) {
    for a in layer {
        let renamed = a.flag.renamed_values.iter().find(|(old, _)| old.eq_ignore_ascii_case(&a.value));
        if let Some((old, new)) = renamed {
            notices.push(format!("{}: '{old}' is now called {new}", a.subject));
            a.value = (*new).to_owned();
        }
    }
}

/// The value of one flag over all layers, lowest first.
fn value_of(flag: &'static Flag, layers: &[Vec<Assignment>; 3]) -> Result<Given, CliError> {
    let of_flag = |layer: &Vec<Assignment>| -> Vec<Assignment> {
        layer.iter().filter(|a| std::ptr::eq(a.flag, flag) || a.flag.name == flag.name).cloned().collect()
    };
    let given: Vec<Vec<Assignment>> = layers.iter().map(of_flag).filter(|l| !l.is_empty()).collect();
    let Some(top) = given.last() else { return default_of(flag) };
    let subject = top.last().map(|a| a.subject.clone()).unwrap_or_default();
    let value = match flag.kind {
        Kind::Json => Value::Json(json_of(flag, &given)?),
        Kind::List => Value::List(list_of(top)?),
        _ => match top.last() {
            Some(last) => checked(flag, last)?,
            None => return default_of(flag),
        },
    };
    check_neutral(flag, &subject, &value)?;
    Ok(Given { value: Some(value), subject })
}

fn default_of(flag: &'static Flag) -> Result<Given, CliError> {
    let value = match flag.default {
        "" => None,
        text => Some(parse_value(&flag.kind, text).map_err(|e| CliError::new(flag.name, e))?),
    };
    Ok(Given { value, subject: String::new() })
}

fn checked(flag: &Flag, a: &Assignment) -> Result<Value, CliError> {
    let refused = flag
        .refused_values
        .iter()
        .find(|(values, _)| values.iter().any(|value| value.eq_ignore_ascii_case(&a.value)));
    if let Some((_, instead)) = refused {
        return Err(CliError::new(a.subject.clone(), format!("'{}' is not supported; {instead}", a.value)));
    }
    parse_value(&flag.kind, &a.value).map_err(|message| CliError::new(a.subject.clone(), message))
}

fn list_of(assignments: &[Assignment]) -> Result<Vec<String>, CliError> {
    let mut items = Vec::new();
    for a in assignments {
        match parse_value(&Kind::List, &a.value) {
            Ok(Value::List(words)) => items.extend(words),
            Ok(_) => {}
            Err(message) => return Err(CliError::new(a.subject.clone(), message)),
        }
    }
    Ok(items)
}

/// Objects and dotted keys of all layers: a whole object replaces what came before it, a key changes it.
fn json_of(flag: &Flag, layers: &[Vec<Assignment>]) -> Result<JsonMap, CliError> {
    let mut map = JsonMap::new();
    for a in layers.iter().flatten() {
        if a.keys.is_empty() {
            let parsed = checked(flag, a)?;
            if let Value::Json(object) = parsed {
                map = object;
            }
        } else {
            set_key(&mut map, a)?;
        }
    }
    Ok(map)
}

fn set_key(map: &mut JsonMap, a: &Assignment) -> Result<(), CliError> {
    let wrong = |key: &str| CliError::new(a.subject.clone(), format!("'{key}' holds a value, not an object"));
    let Some((last, parents)) = a.keys.split_last() else { return Ok(()) };
    let mut at = map;
    for key in parents {
        let entry = at.entry(key.clone()).or_insert_with(|| Json::Object(JsonMap::new()));
        at = entry.as_object_mut().ok_or_else(|| wrong(key))?;
    }
    if !a.append {
        at.insert(last.clone(), dotted_value(&a.value));
        return Ok(());
    }
    let entry = at.entry(last.clone()).or_insert_with(|| Json::Array(Vec::new()));
    let list = entry
        .as_array_mut()
        .ok_or_else(|| CliError::new(a.subject.clone(), format!("'{last}' holds a value, not a list")))?;
    list.extend(a.value.split(',').map(dotted_value));
    Ok(())
}

fn check_neutral(flag: &Flag, subject: &str, value: &Value) -> Result<(), CliError> {
    let Status::Neutral { values, later } = flag.status else { return Ok(()) };
    if values.iter().any(|neutral| parse_value(&flag.kind, neutral).as_ref() == Ok(value)) {
        return Ok(());
    }
    let words: Vec<&str> = values.iter().filter(|v| !v.is_empty()).copied().collect();
    let instead = match (flag.kind, words.as_slice()) {
        (Kind::Bool | Kind::Json | Kind::List, _) | (_, []) => "leave it out".to_owned(),
        (_, [only]) => format!("leave it out, or at {only}"),
        (_, several) => format!("leave it out, or at {}", several.join(" or ")),
    };
    Err(CliError::new(subject, format!("{later}; {instead}")))
}

impl Resolved {
    /// An error about this flag, named as it was given.
    pub fn error(&self, name: &str, message: impl Into<String>) -> CliError {
        let subject = match self.values.get(name) {
            Some(given) if !given.subject.is_empty() => given.subject.clone(),
            _ => format!("--{name}"),
        };
        CliError::new(subject, message)
    }
    /// Whether the value comes from anywhere but the default.
    pub fn is_given(&self, name: &str) -> bool {
        self.read.borrow_mut().insert(name.to_owned());
        self.values.get(name).is_some_and(|given| !given.subject.is_empty())
    }
    /// What was given of these groups' flags, as environment twins: another process of this program that reads
    /// them is started alike.
    pub fn variables(&self, groups: &[Group]) -> Vec<(String, Secret)> {
        let flags = groups.iter().flat_map(|group| group.flags.iter());
        let twin = |flag: &Flag| {
            if !matches!(flag.status, Status::Active | Status::Neutral { .. }) {
                return None;
            }
            let given = self.values.get(flag.name).filter(|given| !given.subject.is_empty())?;
            Some((flag.env_name()?, Secret::new(given.value.as_ref()?.text())))
        };
        flags.filter_map(twin).collect()
    }
    /// Flags that were read so far.
    #[cfg(test)]
    pub fn read_names(&self) -> BTreeSet<String> {
        self.read.borrow().clone()
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.read.borrow_mut().insert(name.to_owned());
        match self.values.get(name) {
            Some(given) => given.value.as_ref(),
            None => panic!("the flag table has no --{name} here"),
        }
    }

    /// A switch with a default.
    pub fn bool(&self, name: &str) -> bool {
        self.opt_bool(name).unwrap_or(false)
    }
    /// A switch that may be left to the engine.
    pub fn opt_bool(&self, name: &str) -> Option<bool> {
        self.get(name).map(|value| match value {
            Value::Bool(on) => *on,
            other => wrong_kind(name, other),
        })
    }
    /// A whole number; `None` is unset or `auto`.
    pub fn opt_int<T: TryFrom<i128>>(&self, name: &str) -> Option<T> {
        self.get(name).and_then(|value| match value {
            Value::Int(number) => match T::try_from(*number) {
                Ok(number) => Some(number),
                Err(_) => panic!("the flag table allows {number} for --{name}, its type does not"),
            },
            Value::Auto => None,
            other => wrong_kind(name, other),
        })
    }
    /// A whole number with a default.
    pub fn int<T: TryFrom<i128>>(&self, name: &str) -> T {
        self.opt_int(name).unwrap_or_else(|| panic!("the flag table has no default for --{name}"))
    }
    /// Whether the value is `auto`.
    pub fn is_auto(&self, name: &str) -> bool {
        matches!(self.get(name), Some(Value::Auto))
    }
    /// A number that may be unset.
    pub fn opt_float(&self, name: &str) -> Option<f64> {
        self.get(name).map(|value| match value {
            Value::Float(number) => *number,
            other => wrong_kind(name, other),
        })
    }
    /// A number with a default.
    pub fn float(&self, name: &str) -> f64 {
        self.opt_float(name).unwrap_or_else(|| panic!("the flag table has no default for --{name}"))
    }
    /// A text that may be unset; an empty one counts as unset.
    pub fn opt_text(&self, name: &str) -> Option<String> {
        let text = self.get(name).map(|value| match value {
            Value::Text(text) => text.clone(),
            other => wrong_kind(name, other),
        });
        text.filter(|text| !text.is_empty())
    }
    /// A path that may be unset.
    pub fn opt_path(&self, name: &str) -> Option<std::path::PathBuf> {
        self.opt_text(name).map(Into::into)
    }
    /// A JSON object; empty when unset.
    pub fn json(&self, name: &str) -> JsonMap {
        match self.get(name) {
            None => JsonMap::new(),
            Some(Value::Json(map)) => map.clone(),
            Some(other) => wrong_kind(name, other),
        }
    }
    /// Words; none when unset.
    pub fn list(&self, name: &str) -> Vec<String> {
        match self.get(name) {
            None => Vec::new(),
            Some(Value::List(items)) => items.clone(),
            Some(other) => wrong_kind(name, other),
        }
    }
    /// One of a closed set of words.
    pub fn opt_choice<T: Choice>(&self, name: &str) -> Option<T> {
        let word = self.opt_text(name)?;
        match T::from_name(&word) {
            Some(choice) => Some(choice),
            None => panic!("the flag table allows '{word}' for --{name}, its type does not"),
        }
    }
    /// One of a closed set of words, with a default.
    pub fn choice<T: Choice>(&self, name: &str) -> T {
        self.opt_choice(name).unwrap_or_else(|| panic!("the flag table has no default for --{name}"))
    }
    /// The device.
    pub fn device(&self, name: &str) -> DeviceChoice {
        match self.get(name) {
            Some(Value::Device(device)) => *device,
            Some(other) => wrong_kind(name, other),
            None => DeviceChoice::AUTO,
        }
    }
}

/// The table and the typed arguments disagree about a flag: a bug that the test of all flags finds.
fn wrong_kind(name: &str, value: &Value) -> ! {
    panic!("--{name} is read as another kind than the flag table says ({value:?})")
}
