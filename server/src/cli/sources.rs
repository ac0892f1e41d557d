//! Where values come from besides the command line: the environment twins and the `--config` file. Both
//! become the same assignments as typed flags; `resolve` picks between them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value as Json;

use super::commands::{COMMANDS, CommandSpec};
use super::error::CliError;
use super::flag::{Flag, Kind};
use super::lex::{Set, unknown_flag};
use super::suggest::nearest;
use super::value::json_word;

/// Reads one environment variable.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// One flag with one value, from anywhere.
#[derive(Clone, Debug)]
pub struct Assignment {
    pub flag: &'static Flag,
    /// What errors and notices name: `--port`, `PALLIUM_PORT`, `pallium.yaml: port`.
    pub subject: String,
    pub keys: Vec<String>,
    pub append: bool,
    pub value: String,
}

impl From<Set> for Assignment {
    fn from(set: Set) -> Self {
        Assignment {
            flag: set.flag,
            subject: set.typed,
            keys: set.keys,
            append: set.append,
            value: set.value,
        }
    }
}

/// Largest `--config` file, in bytes.
const MAX_CONFIG_FILE_BYTES: u64 = 1 << 20;

/// The environment twins that are set, and notices about those that are not meant for us.
pub fn from_environment(spec: &CommandSpec, env: Env<'_>) -> (Vec<Assignment>, Vec<String>) {
    let (mut found, mut notices) = (Vec::new(), Vec::new());
    for flag in spec.flags() {
        let Some(name) = flag.env_name() else { continue };
        let Some(text) = env(&name) else { continue };
        // An empty variable is one that a chart left out. An empty key would open the server, so it stays and
        // is refused later.
        if text.is_empty() && flag.name != "api-key" {
            continue;
        }
        if flag.name == "port" && text.starts_with("tcp://") {
            notices.push(format!("{name}: ignored; Kubernetes sets it for a service called pallium"));
            continue;
        }
        for value in split_variable(flag, &text) {
            found.push(assignment(flag, name.clone(), value));
        }
    }
    (found, notices)
}

/// Notices about `PALLIUM_` variables that no flag of any command has: a misspelt twin would otherwise be
/// silently without effect. Those that Kubernetes sets for a service called pallium, and those of builds, are
/// left alone.
pub fn unknown_variables(names: impl Iterator<Item = String>) -> Vec<String> {
    let flags = COMMANDS.iter().flat_map(CommandSpec::flags);
    let known: BTreeSet<String> = flags.filter_map(Flag::env_name).collect();
    let foreign = |name: &str| {
        name.starts_with("PALLIUM_PORT_")
            || name.starts_with("PALLIUM_SERVICE_")
            || BUILD_VARIABLES.contains(&name)
    };
    let unknown = names.filter(|n| n.starts_with("PALLIUM_") && !known.contains(n) && !foreign(n));
    let notice = |name: String| {
        let spelt = |text: &str| text.trim_start_matches("PALLIUM_").replace('_', "-").to_lowercase();
        let flags: BTreeMap<String, &String> = known.iter().map(|known| (spelt(known), known)).collect();
        match nearest(&spelt(&name), flags.keys().map(String::as_str)) {
            Some(near) => format!("{name}: no flag has this twin; did you mean {}?", flags[near]),
            None => format!("{name}: no flag has this twin; it is without effect"),
        }
    };
    unknown.map(notice).collect()
}

/// Variables that builds read.
const BUILD_VARIABLES: &[&str] = &["PALLIUM_CUDA_ARCHS"];

/// The flags in a YAML file.
///
/// # Errors
/// The file cannot be read, is no YAML mapping, or has a key that is no flag.
pub fn from_file(spec: &CommandSpec, path: &str) -> Result<Vec<Assignment>, CliError> {
    let about = |message: String| CliError::new("--config", message);
    let size = std::fs::metadata(path).map_err(|e| about(format!("{path}: {e}")))?.len();
    if size > MAX_CONFIG_FILE_BYTES {
        return Err(about(format!("{path} has {size} bytes; the most is {MAX_CONFIG_FILE_BYTES}")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| about(format!("{path}: {e}")))?;
    let parsed: Json =
        serde_yaml_ng::from_str(&text).map_err(|e| about(format!("{path} is not YAML: {e}")))?;
    let map = match parsed {
        Json::Object(map) => map,
        Json::Null => return Ok(Vec::new()),
        _ => return Err(about(format!("{path} is no mapping; write lines such as `max-model-len: 8k`"))),
    };
    let mut found = Vec::new();
    for (key, value) in map {
        found.extend(from_file_entry(spec, path, &key, value)?);
    }
    Ok(found)
}

fn from_file_entry(
    spec: &CommandSpec,
    path: &str,
    key: &str,
    value: Json,
) -> Result<Vec<Assignment>, CliError> {
    let subject = format!("{path}: {key}");
    let name = key.replace('_', "-");
    let name = name.strip_prefix("--").unwrap_or(&name);
    let negated = name.strip_prefix("no-").and_then(|n| spec.flag(n)).filter(|f| f.kind == Kind::Bool);
    let flag = match spec.flag(name).or(negated) {
        Some(flag) if flag.name == "config" => {
            return Err(CliError::new(subject, "a file of flags cannot name another"));
        }
        Some(flag) => flag,
        None => return Err(unknown_flag(spec, &subject, name)),
    };
    let negate = spec.flag(name).is_none();
    let values = match (flag.kind, value) {
        (_, Json::Null) => Vec::new(),
        (Kind::Bool, Json::Bool(on)) => vec![(on != negate).to_string()],
        (Kind::List, Json::Array(items)) if items.is_empty() => vec!["[]".to_owned()],
        (Kind::List, Json::Array(items)) => items.iter().map(json_word).collect(),
        (Kind::Json | Kind::List, object @ Json::Object(_)) => vec![object.to_string()],
        (_, Json::Array(_) | Json::Object(_)) => {
            return Err(CliError::new(subject, "takes one value"));
        }
        (_, scalar) => vec![json_word(&scalar)],
    };
    Ok(values.into_iter().map(|value| assignment(flag, subject.clone(), value)).collect())
}

fn assignment(flag: &'static Flag, subject: String, value: String) -> Assignment {
    Assignment { flag, subject, keys: Vec::new(), append: false, value }
}

/// A variable's text as values: a list is separated by commas unless it is JSON.
fn split_variable(flag: &Flag, text: &str) -> Vec<String> {
    if flag.kind == Kind::List && !text.starts_with(['[', '{']) {
        text.split(',').map(|part| part.trim().to_owned()).collect()
    } else {
        vec![text.to_owned()]
    }
}
