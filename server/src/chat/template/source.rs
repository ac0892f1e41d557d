//! Where a chat template comes from: the command line, or the files of a checkpoint.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value as Json};

use super::{ChatTemplate, MAX_TEMPLATE_BYTES, TemplateError};

/// Names of the special tokens that templates see, as `tokenizer_config.json` spells them.
const SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The chat templates of a checkpoint by name; most have one, named `default`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TemplateSources {
    by_name: BTreeMap<String, String>,
}

impl TemplateSources {
    /// Reads `chat_template.jinja` (and `additional_chat_templates/*.jinja`), else `chat_template.json`, else the
    /// `chat_template` of `tokenizer_config.json` (a string, or a list of `{name, template}`).
    ///
    /// # Errors
    /// [`TemplateError::Load`] when one of these files is there but can't be read as what it should be.
    pub fn of_checkpoint(directory: &Path) -> Result<Self, TemplateError> {
        let mut by_name = BTreeMap::new();
        if let Some(config) = read_json(&directory.join("tokenizer_config.json"))? {
            add_named(config.get("chat_template"), "tokenizer_config.json", &mut by_name)?;
        }
        if let Some(processor) = read_json(&directory.join("chat_template.json"))? {
            add_named(processor.get("chat_template"), "chat_template.json", &mut by_name)?;
        }
        if let Some(source) = read_if_there(&directory.join("chat_template.jinja"))? {
            by_name.insert("default".into(), source);
        }
        for entry in
            std::fs::read_dir(directory.join("additional_chat_templates")).into_iter().flatten().flatten()
        {
            let path = entry.path();
            let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
            if path.extension().is_some_and(|extension| extension == "jinja") {
                by_name.extend(read_if_there(&path)?.map(|source| (name, source)));
            }
        }
        Ok(Self { by_name })
    }

    /// Templates in hand, by name.
    pub fn of_named(templates: impl IntoIterator<Item = (String, String)>) -> Self {
        Self { by_name: templates.into_iter().collect() }
    }

    /// The value of `--chat-template`: a path of a Jinja file, or the template itself on one line.
    ///
    /// # Errors
    /// [`TemplateError::Load`] when the value looks like a path (it holds no Jinja mark) and no such file is there.
    pub fn of_flag(value: &str) -> Result<Self, TemplateError> {
        let looks_like_template = value.contains(['{', '}', '\n']);
        let source = match looks_like_template && !Path::new(value).is_file() {
            true => value.replace("\\n", "\n"),
            false => read_if_there(Path::new(value))?.ok_or_else(|| {
                TemplateError::Load(format!(
                    "--chat-template {value}: no such file, and no template either (it holds none of {{ }})"
                ))
            })?,
        };
        Ok(Self { by_name: BTreeMap::from([("default".into(), source)]) })
    }

    /// Whether the checkpoint has no chat template at all.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// The source to use: `tool_use` for a request with tools where there is one, else `default`, else the only one.
    ///
    /// # Errors
    /// [`TemplateError::Load`] naming what there is, when nothing fits.
    pub fn choose(&self, with_tools: WithTools) -> Result<&str, TemplateError> {
        let tool_use = self.by_name.get("tool_use").filter(|_| with_tools == WithTools::Yes);
        let only = self.by_name.values().next().filter(|_| self.by_name.len() == 1);
        tool_use.or_else(|| self.by_name.get("default")).or(only).map(String::as_str).ok_or_else(|| {
            TemplateError::Load(match self.is_empty() {
                true => "this model has no chat template; give one with --chat-template FILE, or use \
                         /v1/completions"
                    .into(),
                false => format!(
                    "this model has chat templates named {}, but none named default; choose one with \
                     --chat-template FILE",
                    self.by_name.keys().cloned().collect::<Vec<_>>().join(", ")
                ),
            })
        })
    }
}

/// Whether a request declares tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WithTools {
    /// It does.
    Yes,
    /// It does not.
    No,
}

/// The compiled templates of a model: one for requests with tools, one for the rest (often the same).
#[derive(Debug)]
pub struct ChatTemplates {
    default: ChatTemplate,
    tool_use: Option<ChatTemplate>,
}

impl ChatTemplates {
    /// Compiles what `sources` offers.
    ///
    /// # Errors
    /// As [`TemplateSources::choose`] and [`ChatTemplate::new`].
    pub fn compile(
        sources: &TemplateSources,
        special_tokens: &Map<String, Json>,
    ) -> Result<Self, TemplateError> {
        let default = sources.choose(WithTools::No)?;
        let tool_use = sources.choose(WithTools::Yes)?;
        Ok(Self {
            default: ChatTemplate::new(default, special_tokens)?,
            tool_use: match tool_use == default {
                true => None,
                false => Some(ChatTemplate::new(tool_use, special_tokens)?),
            },
        })
    }

    /// The template for a request.
    pub fn get(&self, with_tools: WithTools) -> &ChatTemplate {
        match with_tools {
            WithTools::Yes => self.tool_use.as_ref().unwrap_or(&self.default),
            WithTools::No => &self.default,
        }
    }
}

/// The special tokens of `tokenizer_config.json` (else `special_tokens_map.json`) as variables of a template:
/// `bos_token` and its like as strings, `additional_special_tokens` as a list, and extra ones
/// (`extra_special_tokens`) by their names. Absent tokens are left out.
///
/// # Errors
/// [`TemplateError::Load`] when a file is there but is no JSON object.
pub fn special_tokens(directory: &Path) -> Result<Map<String, Json>, TemplateError> {
    let mut tokens = Map::new();
    for file in ["special_tokens_map.json", "tokenizer_config.json"] {
        let Some(config) = read_json(&directory.join(file))? else { continue };
        for name in SPECIAL_TOKENS {
            tokens.extend(
                config.get(name).and_then(token_text).map(|text| (name.to_owned(), Json::String(text))),
            );
        }
        if let Some(list) = config.get("additional_special_tokens").and_then(Json::as_array) {
            let texts = list.iter().filter_map(token_text).map(Json::String).collect();
            tokens.insert("additional_special_tokens".into(), Json::Array(texts));
        }
        for (name, token) in
            config.get("extra_special_tokens").and_then(Json::as_object).into_iter().flatten()
        {
            tokens.extend(token_text(token).map(|text| (name.clone(), Json::String(text))));
        }
    }
    Ok(tokens)
}

/// A token is a string, or an object with its `content`.
fn token_text(token: &Json) -> Option<String> {
    token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
}

fn add_named(
    templates: Option<&Json>,
    file: &str,
    by_name: &mut BTreeMap<String, String>,
) -> Result<(), TemplateError> {
    let malformed = || {
        let right = "a string, or a list of objects with name and template";
        TemplateError::Load(format!("{file}: chat_template must be {right}"))
    };
    match templates {
        None | Some(Json::Null) => {}
        Some(Json::String(source)) => {
            by_name.insert("default".into(), source.clone());
        }
        Some(Json::Array(list)) => {
            for entry in list {
                let field = |name: &str| entry.get(name).and_then(Json::as_str).map(str::to_owned);
                let (Some(name), Some(source)) = (field("name"), field("template")) else {
                    return Err(malformed());
                };
                by_name.insert(name, source);
            }
        }
        Some(Json::Object(map)) => {
            for (name, source) in map {
                by_name.insert(name.clone(), source.as_str().ok_or_else(malformed)?.to_owned());
            }
        }
        Some(_) => return Err(malformed()),
    }
    Ok(())
}

fn read_json(path: &Path) -> Result<Option<Json>, TemplateError> {
    let Some(text) = read_if_there(path)? else { return Ok(None) };
    match serde_json::from_str::<Json>(&text) {
        Ok(json) if json.is_object() => Ok(Some(json)),
        Ok(_) => Err(TemplateError::Load(format!("{}: must hold a JSON object", path.display()))),
        Err(error) => Err(TemplateError::Load(format!("{}: {error}", path.display()))),
    }
}

fn read_if_there(path: &Path) -> Result<Option<String>, TemplateError> {
    let refused = |why: String| TemplateError::Load(format!("{}: {why}", path.display()));
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(refused(error.to_string())),
        Ok(metadata) if metadata.len() > 4 * MAX_TEMPLATE_BYTES as u64 => {
            return Err(refused(format!("has {} bytes, too many for this kind of file", metadata.len())));
        }
        Ok(_) => {}
    }
    std::fs::read_to_string(path).map(Some).map_err(|error| refused(error.to_string()))
}
