//! Hugging Face chat templates, rendered as `transformers.apply_chat_template` renders them.
//!
//! A chat template is a Jinja template written for Python: it calls methods of Python strings, dicts and lists,
//! prints Python's `True` and `None`, and expects `tojson` to be `json.dumps`. minijinja runs the template;
//! the modules below make what it sees behave as Python does:
//!
//! - [`source`]: where a checkpoint keeps its templates, and how one of several is chosen;
//! - `rewrite`: tags that minijinja has no word for, put in terms of those it has;
//! - `environment`: globals, filters and tests, in the meaning they have in jinja2;
//! - `operators`, `arithmetic`: `+`, `~` and `*` as calls of functions of ours;
//! - `nesting`: how deep a template's own values may nest;
//! - `methods`: methods of `str`, `dict` and `list`;
//! - `text`: Python's `str()` and `repr()`; `json`: `json.dumps`; [`clock`]: `strftime`.
//!
//! A template runs on a budget of instructions and, in `budget`, of the text it makes, so that a hostile one ends with
//! an error instead of hanging or taking all memory.

mod arithmetic;
mod budget;
pub mod clock;
mod environment;
mod filters;
mod json;
mod methods;
mod nesting;
mod operators;
mod rewrite;
pub mod source;
mod text;

use minijinja::Environment;
use serde_json::{Map, Value as Json};

use clock::CivilTime;

/// Instructions one rendering may take. A conversation of 10,000 messages takes about two million.
pub const TEMPLATE_FUEL: u64 = 50_000_000;
/// Longest template source that is compiled, in bytes.
pub const MAX_TEMPLATE_BYTES: usize = 4 << 20;

const TEMPLATE_NAME: &str = "chat_template";
/// What marks the place where a continued message ends; the trailing space tells whether the template trims.
const CONTINUE_TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// A compiled chat template with the special tokens of its tokenizer.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    special_tokens: Map<String, Json>,
}

/// What one rendering is given.
#[derive(Debug, Clone, Default)]
pub struct RenderInput<'a> {
    /// A JSON list of messages, each an object with `role` and mostly `content`.
    pub messages: Option<&'a Json>,
    /// A JSON list of tool schemas; templates see `none` when absent.
    pub tools: Option<&'a Json>,
    /// A JSON list of documents (`title`, `text`) for retrieval; templates see `none` when absent.
    pub documents: Option<&'a Json>,
    /// Ends the prompt with the header of an assistant message.
    pub add_generation_prompt: bool,
    /// Leaves the last message open, so that generation goes on where it stops.
    pub continue_final_message: bool,
    /// Further variables (`chat_template_kwargs`); they win over special tokens of the same name.
    pub kwargs: Option<&'a Map<String, Json>>,
    /// What `strftime_now` sees; the system clock in UTC when absent.
    pub now: Option<CivilTime>,
}

/// Why a chat template could not be loaded or rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The template is not valid Jinja.
    #[error("chat template, line {line}: {message}")]
    Syntax { line: usize, message: String },
    /// The template refused the conversation by `raise_exception`.
    #[error("{0}")]
    Raised(String),
    /// The template failed on this conversation.
    #[error("chat template, line {line}: {message}")]
    Render { line: usize, message: String },
    /// The template ran longer than its budget.
    #[error("chat template, line {line}: stopped after {TEMPLATE_FUEL} instructions; it loops too long")]
    OutOfFuel { line: usize },
    /// The template made more text than its budget.
    #[error("chat template{}: stopped because it makes too much text for a conversation of this size", line_text(*line))]
    OutOfText {
        /// Unknown where plain text was one too many.
        line: Option<usize>,
    },
    /// `continue_final_message` does not fit the conversation or the template.
    #[error("{0}")]
    Continue(String),
    /// The request's messages, tools or documents have the wrong JSON type.
    #[error("{0}")]
    Input(String),
    /// A file that should hold the template is missing or malformed, or no template has the wanted name.
    #[error("{0}")]
    Load(String),
}

impl ChatTemplate {
    /// Compiles `source`. `special_tokens` (`bos_token`, `eos_token` ...) become variables of the template.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`] with the line, or [`TemplateError::Load`] for a source above
    /// [`MAX_TEMPLATE_BYTES`].
    pub fn new(source: &str, special_tokens: &Map<String, Json>) -> Result<Self, TemplateError> {
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(TemplateError::Load(format!(
                "the chat template has {} bytes; at most {MAX_TEMPLATE_BYTES} are accepted",
                source.len()
            )));
        }
        let mut environment = environment::python_environment();
        environment
            .add_template_owned(TEMPLATE_NAME, rewrite::for_minijinja(source))
            .map_err(|error| syntax_error(&error))?;
        Ok(Self { environment, source: source.to_owned(), special_tokens: special_tokens.clone() })
    }

    /// The source as given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The prompt for `input`, as `transformers.apply_chat_template(tokenize=False)` gives it.
    ///
    /// # Errors
    /// [`TemplateError::Raised`] with the template's own words when it calls `raise_exception`; otherwise what
    /// went wrong and in which line.
    pub fn render(&self, input: &RenderInput<'_>) -> Result<String, TemplateError> {
        let mut messages = checked_messages(input)?;
        let continued = match input.continue_final_message {
            true => Some(mark_final_message(&mut messages, &self.source)?),
            false => None,
        };
        let rendered = self.run(input, Json::Array(messages))?;
        match continued {
            Some(text) => cut_after_mark(&rendered, &text),
            None => Ok(rendered),
        }
    }

    fn run(&self, input: &RenderInput<'_>, messages: Json) -> Result<String, TemplateError> {
        let template = self.environment.get_template(TEMPLATE_NAME).map_err(|error| syntax_error(&error))?;
        let mut context = self.special_tokens.clone();
        for (name, value) in input.kwargs.into_iter().flatten() {
            context.insert(name.clone(), value.clone());
        }
        let messages_count = messages.as_array().map_or(0, Vec::len);
        context.insert("messages".into(), messages);
        context.insert("tools".into(), input.tools.cloned().unwrap_or(Json::Null));
        context.insert("documents".into(), input.documents.cloned().unwrap_or(Json::Null));
        context.insert("add_generation_prompt".into(), Json::Bool(input.add_generation_prompt));
        let input_bytes = context.values().map(budget::bytes_of).sum();
        let now = input.now.unwrap_or_else(CivilTime::now_utc);
        let context = environment::with_clock(&context, now);
        let mut output = budget::Output::default();
        let budget = budget::open(input_bytes, messages_count);
        let rendered = template.render_captured_to(context, &mut output);
        match rendered {
            result if budget.is_spent() => {
                Err(TemplateError::OutOfText { line: result.err().and_then(|error| innermost_line(&error)) })
            }
            Err(error) => Err(render_error(&error)),
            Ok(_) => Ok(output.into_text()),
        }
    }
}

fn checked_messages(input: &RenderInput<'_>) -> Result<Vec<Json>, TemplateError> {
    let list_of_objects = |name: &str, value: Option<&Json>| match value {
        None | Some(Json::Null) => Ok(Vec::new()),
        Some(Json::Array(items)) => match items.iter().position(|item| !item.is_object()) {
            None => Ok(items.clone()),
            Some(index) => Err(TemplateError::Input(format!("{name}[{index}] must be an object"))),
        },
        Some(_) => Err(TemplateError::Input(format!("{name} must be a list of objects"))),
    };
    list_of_objects("tools", input.tools)?;
    list_of_objects("documents", input.documents)?;
    list_of_objects("messages", input.messages)
}

/// Appends [`CONTINUE_TAG`] to the text of the last message; returns that text as it was.
fn mark_final_message(messages: &mut [Json], source: &str) -> Result<String, TemplateError> {
    let fail = |why: &str| TemplateError::Continue(format!("continue_final_message is set but {why}"));
    let last = messages.last_mut().ok_or_else(|| fail("the conversation is empty"))?;
    if !source.contains("content") {
        return Err(fail("the chat template does not read \"content\""));
    }
    let text = match last.get_mut("content") {
        None | Some(Json::Null) => return Err(fail("the final message has no \"content\" to continue")),
        Some(Json::Array(parts)) => parts.iter_mut().rev().find_map(|part| part.get_mut("text")),
        Some(content) => Some(content),
    };
    match text {
        Some(Json::String(text)) => {
            let before = text.clone();
            text.push_str(CONTINUE_TAG);
            Ok(before)
        }
        _ => Err(fail("there is no text to continue in the final message")),
    }
}

/// Cuts the prompt where the mark stands; a template that trims messages gets the trimmed text.
fn cut_after_mark(rendered: &str, final_text: &str) -> Result<String, TemplateError> {
    let place = rendered.rfind(CONTINUE_TAG.trim_end()).filter(|_| rendered.contains(final_text.trim()));
    let Some(place) = place else {
        return Err(TemplateError::Continue(
            "continue_final_message is set but the final message does not appear in the prompt: the chat \
             template drops or changes it"
                .into(),
        ));
    };
    let kept = &rendered[..place];
    Ok(if rendered[place..].starts_with(CONTINUE_TAG) { kept } else { kept.trim_end() }.to_owned())
}

/// The line of the first cause that names one.
fn innermost_line(error: &minijinja::Error) -> Option<usize> {
    let mut line = error.line();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        line = cause.downcast_ref::<minijinja::Error>().and_then(minijinja::Error::line).or(line);
        source = cause.source();
    }
    line
}

fn line_text(line: Option<usize>) -> String {
    line.map(|line| format!(", line {line}")).unwrap_or_default()
}

fn error_text(error: &minijinja::Error) -> String {
    error.detail().map_or_else(|| error.kind().to_string(), str::to_owned)
}

fn syntax_error(error: &minijinja::Error) -> TemplateError {
    TemplateError::Syntax { line: error.line().unwrap_or(1), message: error_text(error) }
}

/// Tells what the template raised itself from what failed in it, whatever macros lay between.
fn render_error(error: &minijinja::Error) -> TemplateError {
    let mut innermost = error;
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        if let Some(raised) = cause.downcast_ref::<environment::RaisedByTemplate>() {
            return TemplateError::Raised(raised.0.clone());
        }
        innermost = cause.downcast_ref::<minijinja::Error>().unwrap_or(innermost);
        source = cause.source();
    }
    let line = innermost.line().or(error.line()).unwrap_or(1);
    match innermost.kind() {
        minijinja::ErrorKind::OutOfFuel => TemplateError::OutOfFuel { line },
        _ => TemplateError::Render { line, message: error_text(innermost) },
    }
}

#[cfg(test)]
mod tests;
