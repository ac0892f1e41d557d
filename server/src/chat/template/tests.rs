//! Rendering errors, limits, continuation and loading; what templates print is checked in `tests/models`.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use super::source::{ChatTemplates, TemplateSources, WithTools, special_tokens};
use super::*;
use serde_json::json;

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, &Map::new()).unwrap()
}

fn render(source: &str, messages: &Json) -> Result<String, TemplateError> {
    template(source).render(&RenderInput { messages: Some(messages), ..Default::default() })
}

#[test]
fn errors_name_the_line_and_the_cause() {
    let none = json!([]);
    let syntax = ChatTemplate::new("a\nb\n{% if %}", &Map::new()).unwrap_err();
    assert!(matches!(syntax, TemplateError::Syntax { line: 3, .. }), "{syntax:?}");
    let render_error = render("a\n{{ messages[0].x.y }}", &none).unwrap_err();
    assert!(matches!(render_error, TemplateError::Render { line: 2, .. }), "{render_error:?}");
    let raised = render("{% macro m() %}{{ raise_exception('no ' ~ 1) }}{% endmacro %}\n{{ m() }}", &none);
    assert_eq!(raised, Err(TemplateError::Raised("no 1".into())));
    let unknown = render("\n\n{{ 1|nosuch }}", &none).unwrap_err();
    assert_eq!(unknown.to_string(), "chat template, line 3: filter nosuch is unknown");
}

#[test]
fn hostile_templates_end_with_an_error() {
    let none = json!([]);
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}\
                   {% endfor %}{% endfor %}";
    assert_eq!(render(endless, &none), Err(TemplateError::OutOfFuel { line: 1 }));
    let recursive = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
    assert!(matches!(render(recursive, &none), Err(TemplateError::Render { .. })));
    let deep = format!("{{{{ {}1{} }}}}", "(".repeat(5_000), ")".repeat(5_000));
    assert!(matches!(ChatTemplate::new(&deep, &Map::new()), Err(TemplateError::Syntax { .. })));
    for source in [
        "{{",
        "{%",
        "{#",
        "{% for",
        "{% for x in",
        "{% raw %}",
        "{{ '",
        "{%- generation",
        "{{ a +",
        "|safe{{+",
    ] {
        let _ = ChatTemplate::new(source, &Map::new());
    }
}

/// Each would take gigabytes; each ends with the same error, in the line that grows.
#[test]
fn templates_that_grow_without_bound_end_with_one_error() {
    let none = json!([]);
    let looped = |body: &str| {
        format!(
            "{{% set n = namespace(x='0123456789', l=[1, 2]) %}}\n{{% for i in range(90000) %}}{body}{{% endfor %}}"
        )
    };
    let grows = [
        "{% set n.x = n.x ~ n.x %}",
        "{% set n.x = n.x + n.x %}",
        "{% set n.x = n.x * 9 %}",
        "{% set n.x = n.x.replace('', n.x) %}",
        "{% set n.x = n.x|replace('', n.x) %}",
        "{% set n.x = [n.x, n.x]|join %}",
        "{% set n.x = ''.join([n.x, n.x]) %}",
        "{% set n.x = '%s%s'|format(n.x, n.x) %}",
        "{% set n.x = '{0}{0}'.format(n.x) %}",
        "{% set n.x = [n.x, n.x]|string %}",
        "{% set n.x = [n.x, n.x]|tojson %}",
        "{% set n.x = [n.x, n.x]|pprint %}",
        "{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}",
        "{% set n.l = n.l + n.l %}",
        "{% set n.l = n.l * 9 %}",
        "{% set n.l = n.l + ['a' * 100000] %}",
        "{% set n.l = n.l + ['a'|indent(100000, true)] %}",
        "{% set n.l = n.l + [[1]|batch(100000, 0)] %}",
        "{% set n.l = n.l + ['%99999d'|format(1)] %}",
        "{% set n.l = n.l + ['{:99999}'.format(1)] %}",
        "{% for j in range(90000) %}0123456789{% endfor %}",
        "{% set x %}{% for j in range(90000) %}0123456789{% endfor %}{% endset %}{% set n.l = n.l + [x] %}",
    ];
    for body in grows {
        // Plain text has no line.
        let line = (!body.starts_with("{% for j") || body.contains("endset")).then_some(2);
        assert_eq!(render(&looped(body), &none), Err(TemplateError::OutOfText { line }), "{body}");
    }
    let recursive = "{% macro m(x) %}{{ m(x ~ x) }}{% endmacro %}{{ m('0123456789') }}";
    assert_eq!(render(recursive, &none), Err(TemplateError::OutOfText { line: Some(1) }));
    for wide in [
        "'%9999999999d'|format(1)",
        "'%*d'|format(9999999999, 1)",
        "'{:9999999999}'.format(1)",
        "'a'|indent(9999999999)",
        "[1]|batch(9999999999, 0)",
        "[1]|slice(9999999999)",
    ] {
        let said = render(&format!("{{{{ {wide} }}}}"), &none).unwrap_err().to_string();
        assert!(
            said.ends_with("a width or count is above 1048576, the most that is taken"),
            "{wide}: {said}"
        );
    }
    let said = TemplateError::OutOfText { line: Some(2) }.to_string();
    assert_eq!(
        said,
        "chat template, line 2: stopped because it makes too much text for a conversation of this size"
    );
}

/// Values that nest without end would overflow the stack when they are printed, compared or dropped.
#[test]
fn values_that_nest_without_end_are_refused() {
    let none = json!([]);
    for body in [
        "{% set n.l = [n.l] %}",
        "{% set n.l = [1, n.l] %}",
        "{% set n.l = {'a': n.l} %}",
        "{% set n.l = n.l, 1 %}",
    ] {
        let source =
            format!("{{% set n = namespace(l=[]) %}}{{% for i in range(90000) %}}{body}{{% endfor %}}");
        let said = render(&source, &none).unwrap_err().to_string();
        assert_eq!(said, "chat template, line 1: a value is nested more than 200 deep", "{body}");
    }
    let lines: String = (0..50_000).map(|_| "{% set x = [x] %}").collect();
    let said = render(&lines, &none).unwrap_err().to_string();
    assert_eq!(said, "chat template, line 1: a value is nested more than 200 deep");
    for value in ["n", "[n]", "{'a': [1, n]}"] {
        let said =
            render(&format!("{{% set n = namespace() %}}{{% set n.x = {value} %}}{{{{ n|upper }}}}"), &none);
        let wanted = "chat template, line 1: a namespace may not hold a namespace";
        assert_eq!(said.unwrap_err().to_string(), wanted, "{value}");
    }
}

/// A template may copy the whole prompt so far for each message, and that of a long conversation.
#[test]
fn long_conversations_are_no_abuse() {
    let messages: Vec<Json> =
        (0..2_000).map(|i| json!({"role": "user", "content": "word ".repeat(100 + i % 7)})).collect();
    let source = "{% set n = namespace(x='', l=[]) %}{% for m in messages %}{% set n.x = n.x ~ m.role ~ ': ' + m.content %}\
                  {% set n.l = n.l + [m] %}{% endfor %}{{ n.x }}{{ n.l|length }}";
    let prompt = render(source, &Json::Array(messages)).unwrap();
    assert!(prompt.len() > 1_000_000 && prompt.ends_with(" 2000"), "{}", prompt.len());
}

#[test]
fn messages_of_the_wrong_type_are_refused() {
    for messages in [json!({}), json!("x"), json!(["x"])] {
        assert!(matches!(render("x", &messages), Err(TemplateError::Input(_))), "{messages}");
    }
}

#[test]
fn the_final_message_can_be_continued() {
    let chat = json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": " Sure, "}]);
    let continued = |source: &str, messages: &Json| {
        let input =
            RenderInput { messages: Some(messages), continue_final_message: true, ..Default::default() };
        template(source).render(&input)
    };
    let plain = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}";
    assert_eq!(continued(plain, &chat).unwrap(), "<user>hi</><assistant> Sure, ");
    let trimming = "{% for m in messages %}<{{ m.role }}>{{ m.content|trim }}</>{% endfor %}";
    assert_eq!(continued(trimming, &chat).unwrap(), "<user>hi</><assistant>Sure,");
    let parts = json!([{"role": "user", "content": [{"type": "text", "text": "hel"}]}]);
    let looping = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}!{% endfor %}";
    assert_eq!(continued(looping, &parts).unwrap(), "hel");
    for (source, messages) in [
        ("nothing of content", &chat),
        (plain, &json!([])),
        (plain, &json!([{"role": "assistant", "content": null}])),
        (plain, &json!([{"role": "assistant", "content": 1}])),
    ] {
        assert!(
            matches!(continued(source, messages), Err(TemplateError::Continue(_))),
            "{source} {messages}"
        );
    }
}

#[test]
fn templates_are_found_where_checkpoints_keep_them() {
    let directory = std::env::temp_dir().join(format!("pallium-templates-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let write = |file: &str, text: &str| std::fs::write(directory.join(file), text).unwrap();
    assert!(TemplateSources::of_checkpoint(&directory).unwrap().is_empty());
    write(
        "tokenizer_config.json",
        r#"{"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": null,
            "chat_template": [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]}"#,
    );
    let sources = TemplateSources::of_checkpoint(&directory).unwrap();
    let templates = ChatTemplates::compile(&sources, &special_tokens(&directory).unwrap()).unwrap();
    assert_eq!(templates.get(WithTools::No).source(), "D");
    assert_eq!(templates.get(WithTools::Yes).source(), "T");
    assert_eq!(
        Json::Object(special_tokens(&directory).unwrap()),
        json!({"bos_token": "<s>", "eos_token": "</s>"})
    );
    write("chat_template.json", r#"{"chat_template": "J"}"#);
    assert_eq!(TemplateSources::of_checkpoint(&directory).unwrap().choose(WithTools::No), Ok("J"));
    write("chat_template.jinja", "file");
    assert_eq!(TemplateSources::of_checkpoint(&directory).unwrap().choose(WithTools::No), Ok("file"));
    let path = directory.join("chat_template.jinja");
    assert_eq!(TemplateSources::of_flag(path.to_str().unwrap()).unwrap().choose(WithTools::Yes), Ok("file"));
    assert_eq!(TemplateSources::of_flag("{{ 1 }}\\n").unwrap().choose(WithTools::Yes), Ok("{{ 1 }}\n"));
    assert!(matches!(TemplateSources::of_flag("no/such.jinja"), Err(TemplateError::Load(_))));
    write("tokenizer_config.json", r#"{"chat_template": 3}"#);
    assert!(matches!(TemplateSources::of_checkpoint(&directory), Err(TemplateError::Load(_))));
    std::fs::remove_dir_all(&directory).unwrap();
}
