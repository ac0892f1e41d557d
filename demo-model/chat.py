"""The conversation format of the bundled model: special tokens, the chat template and its plain-Python twin.

The corpus is rendered by `segments`, a server renders by `CHAT_TEMPLATE`; `tokenizer.py` checks that both give
the same text for the same conversation.
"""

import json

BEGIN, END = "<|begin|>", "<|end|>"
ROLES = {role: f"<|{role}|>" for role in ("system", "user", "assistant", "tool")}
PAD = "<|pad|>"
SPECIAL_TOKENS = [PAD, BEGIN, END, *ROLES.values()]
# Visible in the text (a tool parser looks for them), yet one token each.
TOOL_CALL_OPEN, TOOL_CALL_CLOSE = "<tool_call>", "</tool_call>"

TOOLS_HEADER = "You can call these functions:"
TOOLS_FOOTER = (
    'To call one, answer only with <tool_call>{"name": ..., "arguments": {...}}</tool_call>.'
)

CHAT_TEMPLATE = """\
{{- bos_token }}
{%- set first = messages[0] if messages else none %}
{%- if tools %}
{{- '<|system|>' }}
{%- if first and first.role in ['system', 'developer'] %}{{- first.content + '\\n' }}{%- endif %}
{{- 'HEADER' }}
{%- for tool in tools %}
{%- set f = tool.function if tool.function is defined else tool %}
{%- set schema = f.parameters if f.parameters else {} %}
{%- set required = schema.required if schema.required else [] %}
{{- '\\n- ' + f.name + '(' }}
{%- for name in (schema.properties if schema.properties else {}) %}
{%- set p = schema.properties[name] %}
{{- ', ' if not loop.first else '' }}{{- name }}{{- '' if name in required else '?' }}{{- ': ' }}
{%- if p.enum %}{{- p.enum | join('|') }}{%- elif p.type is string %}{{- p.type }}{%- else %}{{- 'any' }}{%- endif %}
{%- endfor %}
{{- ')' }}{%- if f.description %}{{- ': ' + f.description }}{%- endif %}
{%- endfor %}
{{- '\\nFOOTER<|end|>' }}
{%- elif first and first.role in ['system', 'developer'] %}
{{- '<|system|>' + first.content + '<|end|>' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role in ['system', 'developer'] %}
{%- if not loop.first %}{{- '<|system|>' + message.content + '<|end|>' }}{%- endif %}
{%- elif message.role == 'assistant' %}
{{- '<|assistant|>' }}{%- if message.content %}{{- message.content }}{%- endif %}
{%- if message.tool_calls %}
{%- for call in message.tool_calls %}
{%- set f = call.function if call.function is defined else call %}
{{- '\\n' if message.content or not loop.first else '' }}
{{- '<tool_call>{"name": ' + (f.name | tojson) + ', "arguments": ' }}
{%- if f.arguments is string %}{{- f.arguments }}{%- else %}{{- f.arguments | tojson }}{%- endif %}
{{- '}</tool_call>' }}
{%- endfor %}
{%- endif %}
{{- '<|end|>' }}
{%- else %}
{{- '<|' + message.role + '|>' + message.content + '<|end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}
""".replace("HEADER", TOOLS_HEADER).replace("FOOTER", TOOLS_FOOTER)


def function_line(tool):
    """One line of the system text for one function: `- name(arg: type, optional?: type): description`."""
    f = tool["function"]
    schema = f.get("parameters") or {}
    required = schema.get("required") or []
    parts = []
    for name, p in (schema.get("properties") or {}).items():
        kind = "|".join(p["enum"]) if p.get("enum") else p["type"] if isinstance(p.get("type"), str) else "any"
        parts.append(f"{name}{'' if name in required else '?'}: {kind}")
    tail = f": {f['description']}" if f.get("description") else ""
    return f"\n- {f['name']}({', '.join(parts)}){tail}"


def call_text(call):
    """The text of one tool call as the model writes it."""
    f = call["function"]
    arguments = f["arguments"] if isinstance(f["arguments"], str) else json.dumps(f["arguments"], ensure_ascii=False)
    return f'{TOOL_CALL_OPEN}{{"name": {json.dumps(f["name"])}, "arguments": {arguments}}}{TOOL_CALL_CLOSE}'


def _assistant_text(message):
    parts = [message["content"]] if message.get("content") else []
    return "\n".join(parts + [call_text(c) for c in message.get("tool_calls") or []])


def segments(document):
    """A document as `[(special token, text after it, learn)]`; `learn` marks text the model must predict.

    A document is `{"messages": [...], "tools": [...]}` or `{"text": ...}`. The `END` that closes a learned
    segment is learned with it.
    """
    if "text" in document:
        return [(BEGIN, document["text"], True), (END, "", True)]
    messages, tools = document["messages"], document.get("tools")
    out = [(BEGIN, "", False)]
    if tools:
        head = messages[0]["content"] + "\n" if messages[0]["role"] == "system" else ""
        lines = "".join(function_line(t) for t in tools)
        out += [(ROLES["system"], f"{head}{TOOLS_HEADER}{lines}\n{TOOLS_FOOTER}", False), (END, "", False)]
        messages = messages[1:] if head else messages
    for message in messages:
        learn = message["role"] == "assistant"
        text = _assistant_text(message) if learn else message["content"]
        out += [(ROLES[message["role"]], text, learn), (END, "", learn)]
    return out


def rendered(document, add_generation_prompt=False):
    """The document as one string, as the chat template renders it."""
    text = "".join(special + body for special, body, _ in segments(document))
    return text + (ROLES["assistant"] if add_generation_prompt else "")
