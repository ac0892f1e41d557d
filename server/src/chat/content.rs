//! The shape of message content: plain text, or a list of typed parts, and which of them a template wants.

use serde_json::{Map, Value as Json, json};

use super::template::{ChatTemplate, RenderInput};

/// `--chat-template-content-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ContentFormatOption {
    /// Find out from the template.
    #[default]
    Auto,
    /// Every content is a string.
    String,
    /// Every content is a list of parts.
    OpenAi,
}

/// The shape in which messages are handed to a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentFormat {
    /// Text parts are joined to one string.
    String,
    /// Strings become a list of one text part; lists stay.
    OpenAi,
    /// The template takes both: every content stays as the client sent it.
    Both,
}

/// Two marks, so that a template that reads the first part only is not taken for one that loops.
const PROBES: [&str; 2] = ["palliumprobeone", "palliumprobetwo"];
/// What joins the text parts of one message.
const PART_SEPARATOR: &str = "\n";

impl ContentFormatOption {
    /// The format to use with `template`. `Auto` renders probe conversations: a template loops over parts when the
    /// text of two parts comes out, and no trace of the list itself; it takes strings when a string comes out.
    pub fn resolve(self, template: &ChatTemplate) -> ContentFormat {
        match self {
            Self::String => ContentFormat::String,
            Self::OpenAi => ContentFormat::OpenAi,
            Self::Auto => {
                let parts = PROBES.map(|text| json!({"type": "text", "text": text}));
                match (
                    shows_probes(template, &json!(parts)),
                    shows_probes(template, &json!(PROBES.join(" "))),
                ) {
                    (false, _) => ContentFormat::String,
                    (true, true) => ContentFormat::Both,
                    (true, false) => ContentFormat::OpenAi,
                }
            }
        }
    }
}

/// Puts the content of every message into `format`.
///
/// # Errors
/// A sentence naming the message and the part, when a part that is not text stands where only text can.
pub fn apply_format(messages: &mut [Json], format: ContentFormat) -> Result<(), String> {
    for (index, message) in messages.iter_mut().enumerate() {
        let Some(content) = message.get_mut("content") else { continue };
        match (format, &*content) {
            (ContentFormat::String, Json::Array(parts)) => {
                *content = Json::String(join_text(parts).map_err(|why| format!("messages[{index}].{why}"))?);
            }
            (ContentFormat::OpenAi, Json::String(text)) => {
                *content = json!([{"type": "text", "text": text}]);
            }
            _ => {}
        }
    }
    Ok(())
}

/// Gives a message's reasoning every name that templates read: `reasoning_content` (most), `reasoning`, and
/// `thinking` (gpt-oss). A name that the client set itself stays.
pub fn alias_reasoning(message: &mut Map<String, Json>) {
    const NAMES: [&str; 3] = ["reasoning_content", "reasoning", "thinking"];
    let given = NAMES.iter().find_map(|name| message.get(*name).filter(|value| !value.is_null())).cloned();
    if let Some(reasoning) = given {
        for name in NAMES {
            let value = message.entry(name).or_insert(Json::Null);
            if value.is_null() {
                *value = reasoning.clone();
            }
        }
    }
}

/// The text of all parts, one a line.
fn join_text(parts: &[Json]) -> Result<String, String> {
    let texts: Result<Vec<&str>, String> = parts
        .iter()
        .enumerate()
        .map(|(index, part)| {
            part_text(part).ok_or_else(|| {
                let kind = part.get("type").and_then(Json::as_str).unwrap_or("unknown");
                format!(
                    "content[{index}]: this model's chat template takes text only, got a part of type {kind}"
                )
            })
        })
        .collect();
    Ok(texts?.join(PART_SEPARATOR))
}

fn part_text(part: &Json) -> Option<&str> {
    let field = match part.get("type").and_then(Json::as_str) {
        None | Some("text" | "input_text" | "output_text") => "text",
        Some("refusal") => "refusal",
        Some("thinking") => "thinking",
        Some(_) => return None,
    };
    part.as_str().or_else(|| part.get(field)?.as_str())
}

/// Whether both probes come out as text when `content` is a user's message, alone or after a system message.
fn shows_probes(template: &ChatTemplate, content: &Json) -> bool {
    let user = json!({"role": "user", "content": content});
    let system = json!({"role": "system", "content": "s"});
    [json!([user]), json!([system, user])].iter().any(|messages| {
        let input =
            RenderInput { messages: Some(messages), add_generation_prompt: true, ..Default::default() };
        template.render(&input).is_ok_and(|prompt| {
            let places = PROBES.map(|probe| prompt.find(probe));
            let in_order = matches!(places, [Some(first), Some(second)] if first < second);
            let shows_list = PROBES.iter().any(|probe| {
                prompt.contains(&format!("'{probe}'")) || prompt.contains(&format!("\"{probe}\""))
            });
            in_order && !shows_list
        })
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn format_of(source: &str) -> ContentFormat {
        ContentFormatOption::Auto.resolve(&ChatTemplate::new(source, &Map::new()).unwrap())
    }

    #[test]
    fn the_format_is_found_by_probing() {
        let head = "{% for m in messages %}";
        let cases = [
            ("{{ m.content }}", ContentFormat::String),
            ("{{ m.content | tojson }}", ContentFormat::String),
            ("{{ m.role + m.content }}", ContentFormat::String),
            ("{% for p in m.content %}{{ p.text }}{% endfor %}", ContentFormat::OpenAi),
            ("{{ m.content[0].text }}", ContentFormat::String),
            (
                "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m['content'] \
                 %}{{ p['text'] }}{% endfor %}{% endif %}",
                ContentFormat::Both,
            ),
            (
                "{% if messages[0].role != 'system' %}{{ raise_exception('x') }}{% endif %}{{ m.content }}",
                ContentFormat::String,
            ),
        ];
        for (body, expected) in cases {
            assert_eq!(format_of(&format!("{head}{body}{{% endfor %}}")), expected, "{body}");
        }
    }

    #[test]
    fn messages_take_the_wanted_shape() {
        let parts = json!([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null}, {"role": "assistant", "content": "c"}]);
        let mut messages = parts.as_array().unwrap().clone();
        apply_format(&mut messages, ContentFormat::String).unwrap();
        assert_eq!(messages[0]["content"], "a\nb");
        assert_eq!(messages[1]["content"], Json::Null);
        apply_format(&mut messages, ContentFormat::OpenAi).unwrap();
        assert_eq!(messages[2]["content"], json!([{"type": "text", "text": "c"}]));
        let mut image = vec![json!({"role": "user", "content": [{"type": "image_url", "image_url": {}}]})];
        let error = apply_format(&mut image, ContentFormat::String).unwrap_err();
        assert!(error.starts_with("messages[0].content[0]") && error.contains("image_url"), "{error}");
    }

    #[test]
    fn reasoning_gets_every_name() {
        let mut message =
            json!({"role": "assistant", "reasoning": "r", "thinking": "t"}).as_object().unwrap().clone();
        alias_reasoning(&mut message);
        assert_eq!(message["reasoning_content"], "r");
        assert_eq!(message["thinking"], "t");
    }
}
