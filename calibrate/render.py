"""Conversations as the model sees them: chat template with tools, token ids."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calibrate.pool import Record, tools_offered
from sqtool.errors import DataError


@dataclass
class Rendered:
    """Token ids of each conversation, cut to the limit."""

    ids: list[list[int]] = field(default_factory=list)
    truncated: int = 0
    """Conversations that were longer than the limit."""
    tokens_cut: int = 0
    """Tokens of theirs that were left out."""


def load_tokenizer(model: Path, *, trust_remote_code: bool = False) -> Any:
    """The model's tokenizer. Raises DataError when it cannot be read or has no chat template."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            model,
            f"its tokenizer cannot be read: {str(error).splitlines()[0]}",
            remedy="The model's folder needs its tokenizer files (tokenizer.json, tokenizer_config.json).",
        ) from error
    if not tokenizer.chat_template:
        raise DataError(model, "its tokenizer has no chat template", remedy="Add chat_template.jinja to the folder.")
    return tokenizer


def check_vocabulary(model: Path, tokenizer: Any) -> None:
    """Raises DataError when the tokenizer knows more tokens than the model has embeddings for."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    size = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
    if size is not None and len(tokenizer) > size:
        raise DataError(
            model,
            f"its tokenizer has {len(tokenizer)} tokens and the model embeds {size}",
            remedy="Use the tokenizer that the model was trained with.",
        )


def render(tokenizer: Any, record: Record) -> list[int]:
    """Token ids of the whole conversation. Raises ValueError when the template fails or drops the tools."""
    from jinja2 import TemplateError

    tools = record.get("tools") or None
    messages = [_message(message) for message in record["messages"]]
    try:
        text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
    except TemplateError as error:
        raise ValueError(f"the chat template fails on it: {error}") from error
    missing = [name for name in tools_offered(record) if name not in text]
    if missing:
        raise ValueError(f"the chat template drops its tools ({missing[0]} is nowhere in the text)")
    # The template writes every special token itself.
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """The message with arguments as objects and content as text, which is what chat templates expect."""
    made = {**message, "content": message.get("content") or ""}
    if message.get("tool_calls"):
        made["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": _arguments(call["function"])}}
            for call in message["tool_calls"]
        ]
    return made


def _arguments(function: dict[str, Any]) -> Any:
    arguments = function.get("arguments", {})
    return json.loads(arguments) if isinstance(arguments, str) else arguments


def cut(rendered: Rendered, ids: list[int], limit: int) -> list[int]:
    """Add `ids` to `rendered`, cut to `limit` tokens, and count what was cut."""
    if len(ids) > limit:
        rendered.truncated += 1
        rendered.tokens_cut += len(ids) - limit
    rendered.ids.append(ids[:limit])
    return rendered.ids[-1]
