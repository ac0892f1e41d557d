//! The chat part of a body: messages, tools, documents and template options; and its way to a prompt.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::fields::{Fields, shorten};
use crate::chat::content::{ContentFormat, apply_format};
use crate::chat::template::source::{ChatTemplates, WithTools};
use crate::chat::template::{ChatTemplate, RenderInput, TemplateError};
use crate::http::App;
use crate::http::error::ApiError;
use crate::http::limits::INLINE_TEXT_BYTES;

/// What chat needs beside the tokenizer.
#[derive(Clone)]
pub struct ChatSetup {
    pub templates: Arc<ChatTemplates>,
    /// The shape in which the templates take content.
    pub content_format: ContentFormat,
    /// Variables of a template that a request brings itself (`--trust-request-chat-template`).
    pub special_tokens: Map<String, Value>,
}

/// A conversation as a client sends it, to `/v1/chat/completions` or `/tokenize`.
#[derive(Clone, Debug)]
pub struct Conversation {
    messages: Vec<Value>,
    tools: Option<Value>,
    documents: Option<Value>,
    add_generation_prompt: bool,
    continue_final_message: bool,
    kwargs: Map<String, Value>,
    template: Option<String>,
    /// The model is asked to choose tools itself.
    auto_tools: bool,
    pub add_special_tokens: bool,
    bytes: usize,
}

impl Conversation {
    /// Takes the fields out of a body of this length.
    pub fn read(f: &mut Fields, body_bytes: usize, app: &App) -> Conversation {
        let continued = f.flag("continue_final_message").unwrap_or(false);
        let generation = f.flag("add_generation_prompt");
        if continued && generation == Some(true) {
            f.reject("continue_final_message", "cannot be true together with `add_generation_prompt`");
        }
        let mut kwargs = app.options.frontend.default_chat_template_kwargs.clone();
        kwargs.extend(f.object("chat_template_kwargs").unwrap_or_default());
        if let Some(effort) = f.text("reasoning_effort") {
            kwargs.entry("reasoning_effort").or_insert(Value::String(effort));
        }
        // Without the server's consent a request's own template is ignored.
        let template = f.text("chat_template").filter(|_| app.options.frontend.trust_request_chat_template);
        let (tools, auto_tools) = read_tools(f, app);
        Conversation {
            messages: read_messages(f),
            tools,
            auto_tools,
            documents: f.list("documents").map(Value::Array),
            add_generation_prompt: generation.unwrap_or(!continued),
            continue_final_message: continued,
            kwargs,
            template,
            add_special_tokens: f.flag("add_special_tokens").unwrap_or(false),
            bytes: body_bytes,
        }
    }

    /// The text of the last message when it is of this role (`echo`).
    pub fn last_text(&self, role: &str) -> Option<&str> {
        let last = self.messages.last().filter(|m| m["role"] == role)?;
        last["content"].as_str()
    }

    /// Refuses what needs a parser of tool calls.
    ///
    /// # Errors
    /// 400 when `tool_choice` is `auto`.
    pub fn check_tool_choice(&self) -> Result<(), ApiError> {
        if !self.auto_tools {
            return Ok(());
        }
        Err(ApiError::invalid(
            "`tool_choice` of `auto` requires --enable-auto-tool-choice and --tool-call-parser, which are not in this \
             version; leave `tool_choice` out, and calls come as text.",
        ))
    }

    /// Renders the prompt; a long conversation on a blocking thread.
    ///
    /// # Errors
    /// 400 when there is no template or the template refuses the conversation.
    pub async fn render(self, app: &App) -> Result<String, ApiError> {
        let Some(setup) = app.chat.clone() else {
            return Err(ApiError::invalid(
                "This model has no chat template; give one with --chat-template, or use /v1/completions.",
            ));
        };
        if self.bytes <= INLINE_TEXT_BYTES {
            return self.render_with(&setup);
        }
        let rendered = tokio::task::spawn_blocking(move || self.render_with(&setup)).await;
        rendered.unwrap_or_else(|_| Err(ApiError::internal("The chat template failed.")))
    }

    fn render_with(mut self, setup: &ChatSetup) -> Result<String, ApiError> {
        apply_format(&mut self.messages, setup.content_format).map_err(ApiError::invalid)?;
        let own = match &self.template {
            Some(source) => Some(ChatTemplate::new(source, &setup.special_tokens).map_err(template_error)?),
            None => None,
        };
        let with_tools = if self.tools.is_some() { WithTools::Yes } else { WithTools::No };
        let template = own.as_ref().unwrap_or_else(|| setup.templates.get(with_tools));
        let messages = Value::Array(self.messages);
        let input = RenderInput {
            messages: Some(&messages),
            tools: self.tools.as_ref(),
            documents: self.documents.as_ref(),
            add_generation_prompt: self.add_generation_prompt,
            continue_final_message: self.continue_final_message,
            kwargs: Some(&self.kwargs),
            now: None,
        };
        template.render(&input).map_err(template_error)
    }
}

fn template_error(error: TemplateError) -> ApiError {
    ApiError::invalid(error.to_string())
}

fn read_messages(f: &mut Fields) -> Vec<Value> {
    if !f.has("messages") {
        f.reject("messages", "field required");
    }
    let mut messages = f.list("messages").unwrap_or_default();
    for (i, message) in messages.iter_mut().enumerate() {
        if let Err((path, what)) = check_message(message) {
            f.reject(&format!("messages.{i}{path}"), what);
        }
    }
    messages
}

fn check_message(message: &mut Value) -> Result<(), (&'static str, String)> {
    let Some(fields) = message.as_object_mut() else {
        return Err(("", format!("must be an object, got {}", shorten(message))));
    };
    if !fields.get("role").is_some_and(Value::is_string) {
        return Err((".role", "must be a string".into()));
    }
    match fields.get("content") {
        None | Some(Value::Null | Value::String(_)) => {}
        Some(Value::Array(parts)) if parts.iter().all(|p| p.is_object() || p.is_string()) => {}
        Some(other) => {
            return Err((".content", format!("must be a string or a list of parts, got {}", shorten(other))));
        }
    }
    match fields.get_mut("tool_calls") {
        Some(Value::Array(calls)) => calls.iter_mut().try_for_each(parse_arguments),
        _ => Ok(()),
    }
}

/// Templates expect the arguments of earlier calls as an object; the API carries them as JSON text.
fn parse_arguments(call: &mut Value) -> Result<(), (&'static str, String)> {
    let Some(arguments) = call.pointer_mut("/function/arguments") else { return Ok(()) };
    let Some(text) = arguments.as_str() else { return Ok(()) };
    let parsed =
        if text.trim().is_empty() { Ok(Value::Object(Map::new())) } else { serde_json::from_str(text) };
    *arguments =
        parsed.map_err(|e| (".tool_calls", format!("the arguments of a call are not valid JSON: {e}")))?;
    Ok(())
}

/// Tools go to the template; what the model makes of them comes back as text until a parser is there.
/// Second: whether the model is asked to choose.
fn read_tools(f: &mut Fields, app: &App) -> (Option<Value>, bool) {
    let tools = f.list("tools");
    if tools.as_ref().is_some_and(Vec::is_empty) {
        f.reject("tools", "must not be an empty list; leave it out instead");
    }
    let names: Vec<&str> =
        tools.iter().flatten().filter_map(|t| t.pointer("/function/name")?.as_str()).collect();
    if names.len() != tools.as_ref().map_or(0, Vec::len) {
        f.reject("tools", "each must be `{\"type\": \"function\", \"function\": {\"name\": ..}}`");
    }
    let (mut shown, mut auto) = (true, false);
    match f.take("tool_choice") {
        None => {}
        Some(Value::String(choice)) if choice == "none" => {
            shown = !app.options.frontend.exclude_tools_when_tool_choice_none;
        }
        Some(_) if tools.is_none() => f.reject("tool_choice", "needs `tools`"),
        Some(Value::String(choice)) if choice == "auto" => auto = true,
        Some(Value::String(choice)) if choice == "required" => {
            f.reject("tool_choice", "`required` is not supported by this server yet; use `none`");
        }
        Some(choice) => match choice.pointer("/function/name").and_then(Value::as_str) {
            Some(name) if names.contains(&name) => {
                f.reject("tool_choice", "a named function is not supported by this server yet; use `none`");
            }
            Some(name) => f.reject("tool_choice", format!("the function `{name}` is not among `tools`")),
            None => f.reject("tool_choice", "must be `none`, `auto`, `required` or a function"),
        },
    }
    let _ = f.flag("parallel_tool_calls");
    (tools.filter(|_| shown).map(Value::Array), auto)
}
