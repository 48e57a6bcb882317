"""From an item to token ids by the checkpoint's own tokenizer and template, and from an answer's text to tool calls."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evals.items import Item
from evals.schemas import parse_json
from evals.scorers import ToolCall
from sqtool.errors import DataError, EngineError
from sqtool.templates import FAILURES, check_template, limited

OPENING = "<tool_call>"
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>|<tool_call>(.*)", re.DOTALL)


def load_tokenizer(model: Path) -> Any:
    """The tokenizer in a checkpoint's folder; `EngineError` when there is none, or it has no chat template."""
    from transformers import AutoTokenizer

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise EngineError(
            f"transformers cannot load the tokenizer in {model}: {error}",
            remedy="Give a Hugging Face folder: config.json, *.safetensors, the tokenizer's files.",
        ) from error
    if not tokenizer.chat_template:
        raise EngineError(
            f"the tokenizer in {model} has no chat template, so messages cannot be put to the model",
            remedy="Add chat_template.jinja to the model folder.",
        )
    check_template(model, tokenizer.chat_template)
    return tokenizer


def prompt_ids(tokenizer: Any, item: Item) -> list[int]:
    """The item's messages and tools under the template, up to and with the opening of the answer."""
    from jinja2 import TemplateError

    try:
        with limited(tokenizer.name_or_path):
            text = tokenizer.apply_chat_template(
                _template_messages(item),
                tools=list(item.tools) if item.tools else None,
                tokenize=False,
                add_generation_prompt=True,
            )
    except (TemplateError, *FAILURES) as error:
        raise DataError(f"item {item.id}", f"the model's chat template does not take it: {error}") from None
    return text_ids(tokenizer, text)


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """The text's tokens, without any that a tokenizer adds at the beginning or the end."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _template_messages(item: Item) -> list[dict[str, Any]]:
    """The messages as templates expect them: arguments of earlier calls as objects, as servers hand them over."""
    messages = item.wire_messages()
    for message in messages:
        for call in message.get("tool_calls") or ():
            function = call["function"]
            try:
                function["arguments"] = json.loads(function["arguments"])
            except ValueError:
                continue  # the template gets the text
    return messages


def hermes_calls(text: str) -> tuple[str, tuple[ToolCall, ...]]:
    """Content and tool calls of an answer in the Hermes format: `<tool_call>{"name": ..., "arguments": {}}</tool_call>`
    for each call; the last need not be closed, and what stands between or after calls is dropped.

    As servers do it, everything counts as content when one of the calls is no JSON object of that form.
    """
    if OPENING not in text:
        return text, ()
    calls = []
    for closed, open_ended in _CALL.findall(text):
        try:
            value = parse_json(closed or open_ended)
            name, arguments = value["name"], json.dumps(value["arguments"], ensure_ascii=False)
        except (ValueError, KeyError, TypeError, RecursionError):
            return text, ()
        if not isinstance(name, str):
            return text, ()
        calls.append(ToolCall(name, arguments))
    return text[: text.find(OPENING)], tuple(calls)


def cut(tokens: Sequence[int], stops: frozenset[int], most: int) -> tuple[list[int], bool]:
    """The tokens of an answer before the first stop token, and whether there was one among the first `most`."""
    for place, token in enumerate(tokens[:most]):
        if token in stops:
            return list(tokens[:place]), True
    return list(tokens[:most]), False
