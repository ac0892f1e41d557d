//! Every chat template of the field that we have renders as transformers renders it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;

use serde_json::{Map, Value};
use server::chat::template::clock::CivilTime;
use server::chat::template::{ChatTemplate, RenderInput, TemplateError};

/// 2026-01-15T12:00:00, the clock of both golden files.
const CLOCK: CivilTime = CivilTime { year: 2026, month: 1, day: 15, hour: 12, minute: 0, second: 0 };

/// One rendering against its golden entry: `None` when they agree, otherwise what differs.
fn check(template: &ChatTemplate, conversation: &Value, expected: &Value) -> Option<String> {
    let flag = |name: &str| conversation[name].as_bool().unwrap_or(false);
    let input = RenderInput {
        messages: conversation.get("messages"),
        tools: conversation.get("tools"),
        documents: conversation.get("documents"),
        add_generation_prompt: flag("add_generation_prompt"),
        continue_final_message: flag("continue_final_message"),
        kwargs: conversation.get("kwargs").and_then(Value::as_object),
        now: Some(CLOCK),
    };
    let result = template.render(&input);
    match (expected["rendered"].as_str(), expected["error"].as_str(), result) {
        (Some(wanted), _, Ok(got)) if wanted == got => None,
        (Some(wanted), _, got) => Some(format!("wanted {wanted:?}\n     got {got:?}")),
        (None, Some("raised"), Err(TemplateError::Raised(got))) if expected["message"] == *got => None,
        (None, Some("raised"), got) => {
            Some(format!("wanted raise {}\n     got {got:?}", expected["message"]))
        }
        (None, Some(_), Err(TemplateError::Render { .. } | TemplateError::Continue(_))) => None,
        (None, _, got) => Some(format!("wanted an error like {expected}\n     got {got:?}")),
    }
}

/// Renders every case of the golden file in `directory`; returns how many there were.
fn check_directory(directory: &Path) -> usize {
    let golden: Value =
        serde_json::from_slice(&std::fs::read(directory.join("golden.json")).unwrap()).unwrap();
    assert_eq!(golden["clock"], "2026-01-15T12:00:00");
    let mut wrong = Vec::new();
    let mut count = 0;
    for (file, entry) in golden["templates"].as_object().unwrap() {
        let source = ["llama.cpp", "vllm", "."]
            .iter()
            .find_map(|folder| std::fs::read_to_string(directory.join(folder).join(file)).ok())
            .unwrap_or_else(|| panic!("{file} is not there"));
        let special_tokens = entry["special_tokens"].as_object().cloned().unwrap_or_else(Map::new);
        let template = ChatTemplate::new(&source, &special_tokens).unwrap();
        for (name, expected) in entry["cases"].as_object().unwrap() {
            count += 1;
            if let Some(difference) = check(&template, &golden["conversations"][name], expected) {
                wrong.push(format!("{file} / {name}: {difference}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {count} differ:\n{}", wrong.len(), wrong.join("\n"));
    count
}

/// Where minijinja's meaning can't be brought to jinja2's, or is better left as it is; each with the reason.
const KNOWN_DIFFERENCES: &[(&str, &str)] = &[
    ("{{ +i }}", "minijinja has no unary plus"),
    ("{{ {1: 2, n: 3, yes: 4, 1.5: 5}|tojson }}", "minijinja keeps 1 and True apart as keys"),
    ("{{ namespace(a=1)|tojson }}", "a namespace can't be told from a dict; Python refuses it"),
    (
        "{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, x=2) }}",
        "macros have no varargs and kwargs",
    ),
];

#[test]
fn own_templates_render_as_transformers_renders_them() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/chat-templates");
    assert_eq!(check_directory(&fixtures), 10);
}

#[test]
fn snippets_mean_what_they_mean_in_python() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/chat-templates");
    let golden: Value =
        serde_json::from_slice(&std::fs::read(fixtures.join("golden.json")).unwrap()).unwrap();
    let mut wrong = Vec::new();
    for snippet in golden["snippets"].as_array().unwrap() {
        let source = snippet["source"].as_str().unwrap();
        let input =
            RenderInput { kwargs: golden["variables"].as_object(), now: Some(CLOCK), ..Default::default() };
        let got = ChatTemplate::new(source, &Map::new()).and_then(|template| template.render(&input));
        let agrees = match (&got, snippet["rendered"].as_str(), snippet["error"].as_str()) {
            (Ok(text), Some(wanted), _) => text == wanted,
            (Err(TemplateError::Raised(text)), None, Some("raised")) => snippet["message"] == *text,
            (Err(_), None, Some(kind)) => kind != "raised",
            _ => false,
        };
        let known = KNOWN_DIFFERENCES.iter().any(|(known, _)| *known == source);
        if agrees == known {
            wrong.push(format!("{snippet}\n     got {got:?}{}", if known { " (agrees now)" } else { "" }));
        }
    }
    assert!(wrong.is_empty(), "{} snippets:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn templates_of_the_field_render_as_transformers_renders_them() {
    let Some(shared) = tests::shared_dir() else {
        println!("left out: the chat templates of ../shared, which is not there");
        return;
    };
    assert_eq!(check_directory(&shared.join("chat-templates")), 644);
}
