"""ChatML with Hermes-style tool calls: the template that ships, and the same text written directly for training.

`tests/unit/reference` asserts that both give the same text, so the trainer never sees what a server would not send.
"""

from __future__ import annotations

import json
from typing import Any

START, END = "<|im_start|>", "<|im_end|>"
PAD = "<|pad|>"
TOOL_CALL, TOOL_CALL_END = "<tool_call>", "</tool_call>"
SPECIAL_TOKENS = [PAD, START, END]
# Added but not special: a server's tool parser has to see them in the text.
ADDED_TOKENS = [TOOL_CALL, TOOL_CALL_END, "<tools>", "</tools>", "<tool_response>", "</tool_response>"]

TEMPLATE = """\
{%- set offset = 0 %}
{%- set system = '' %}
{%- if messages and messages[0]['role'] == 'system' %}
{%- set system = messages[0]['content'] %}
{%- set offset = 1 %}
{%- endif %}
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if system %}{{- system + '\\n' }}{%- endif %}
{{- '<tools>\\n' }}
{%- for tool in tools %}
{%- set f = tool['function'] if 'function' in tool else tool %}
{{- '{"name": ' + f['name'] | tojson + ', "description": ' + (f['description'] or '') | tojson }}
{{- ', "parameters": ' + f['parameters'] | tojson + '}\\n' }}
{%- endfor %}
{{- '</tools><|im_end|>\\n' }}
{%- elif system %}
{{- '<|im_start|>system\\n' + system + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages[offset:] %}
{%- if message['role'] == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message['content'] + '\\n</tool_response><|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] %}{{- message['content'] }}{%- endif %}
{%- if message['tool_calls'] %}
{%- for call in message['tool_calls'] %}
{%- set f = call['function'] if 'function' in call else call %}
{%- if message['content'] or not loop.first %}{{- '\\n' }}{%- endif %}
{{- '<tool_call>\\n{"name": ' + f['name'] | tojson + ', "arguments": ' }}
{{- f['arguments'] if f['arguments'] is string else f['arguments'] | tojson }}
{{- '}\\n</tool_call>' }}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def dumps(value: Any) -> str:
    """JSON as the template's `tojson` writes it."""
    return json.dumps(value, ensure_ascii=False)


def calls_text(calls: list[dict[str, Any]]) -> str:
    """The assistant's text for a list of `{"name", "arguments"}`."""
    return "\n".join(
        f'{TOOL_CALL}\n{{"name": {dumps(c["name"])}, "arguments": {dumps(c["arguments"])}}}\n{TOOL_CALL_END}'
        for c in calls
    )


def prompt_text(messages: list[dict[str, str]], tools: list[dict[str, Any]] | None) -> str:
    """The prompt up to and with the assistant's header, as `apply_chat_template(add_generation_prompt=True)`."""
    parts = []
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    if tools:
        parts.append(f"{START}system\n")
        if system:
            parts.append(system + "\n")
        parts.append("<tools>\n")
        for tool in tools:
            f = tool["function"]
            parts.append(
                f'{{"name": {dumps(f["name"])}, "description": {dumps(f["description"])}, '
                f'"parameters": {dumps(f["parameters"])}}}\n'
            )
        parts.append(f"</tools>{END}\n")
    elif system:
        parts.append(f"{START}system\n{system}{END}\n")
    parts += [f"{START}{m['role']}\n{m['content']}{END}\n" for m in messages[1 if system else 0 :]]
    parts.append(f"{START}assistant\n")
    return "".join(parts)
