"""Conversations as the model sees them: chat template with tools, token ids, which of them the assistant wrote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibrate.conversation import Record, arguments, messages_of, tools_offered
from sqtool.errors import DataError
from sqtool.templates import FAILURES, check_template, limited


@dataclass(frozen=True)
class Rendered:
    """One conversation in tokens."""

    ids: list[int]
    """Cut to the limit."""
    answer: int
    """How many tokens of the whole conversation are the last answer's, at most."""
    whole: int
    """Tokens before cutting."""
    mask: list[int] | None = None
    """1 where the assistant wrote the token, for each of `ids`; None when not asked for."""

    @property
    def prompt(self) -> int:
        """Tokens of `ids` before the last answer."""
        return min(len(self.ids), self.whole - self.answer)

    @property
    def output(self) -> int:
        """Tokens of the last answer in `ids`."""
        return len(self.ids) - self.prompt


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
    check_template(model, tokenizer.chat_template)
    return tokenizer


def check_vocabulary(model: Path, tokenizer: Any) -> None:
    """Raises DataError when the tokenizer knows more tokens than the model has embeddings for."""
    size = _config(model, "vocab_size")
    if size is not None and len(tokenizer) > size:
        raise DataError(
            model,
            f"its tokenizer has {len(tokenizer)} tokens and the model embeds {size}",
            remedy="Use the tokenizer that the model was trained with.",
        )


def context_length(model: Path) -> int | None:
    """Tokens that the model can attend to, None when its config does not say."""
    return _config(model, "max_position_embeddings")


def _config(model: Path, key: str) -> int | None:
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    found = config.get(key) or config.get("text_config", {}).get(key)
    return found if isinstance(found, int) else None


def render(tokenizer: Any, record: Record) -> list[int]:
    """Token ids of the whole conversation. Raises ValueError when the template fails or drops the tools."""
    text = _text(tokenizer, record, messages_of(record))
    # The template writes every special token itself; a plain document has none, and gets what the model was trained on.
    ids: list[int] = tokenizer(text, add_special_tokens="messages" not in record)["input_ids"]
    return ids


def render_cut(tokenizer: Any, record: Record, limit: int | None, *, masked: bool = False) -> Rendered:
    """The conversation in at most `limit` tokens. Raises ValueError as `render` does, and with `masked` when it cannot
    be told which tokens the assistant wrote."""
    ids = render(tokenizer, record)
    mask = assistant_mask(tokenizer, record, ids)[:limit] if masked else None
    return Rendered(ids[:limit], _answer_tokens(tokenizer, record), len(ids), mask)


def _answer_tokens(tokenizer: Any, record: Record) -> int:
    """Tokens of the last answer's content and calls, without what the template puts around them."""
    messages = messages_of(record)
    if not messages or messages[-1]["role"] != "assistant":
        return 0
    last = messages[-1]
    functions = [call["function"] for call in last.get("tool_calls") or ()]
    called = [{"name": function["name"], "arguments": arguments(function)} for function in functions]
    text = (last.get("content") or "") + "".join(json.dumps(call, ensure_ascii=False) for call in called)
    return len(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else 0


def assistant_mask(tokenizer: Any, record: Record, ids: Sequence[int]) -> list[int]:
    """1 for each of the conversation's tokens that the assistant wrote, the end of its turn included.

    By the template's own `{% generation %}` marks, else by rendering the conversation up to each answer and behind it,
    which needs a template that does not rewrite what came before. A plain document is the model's own throughout.
    """
    if "messages" not in record:
        return [1] * len(ids)
    messages = [_message(m) for m in messages_of(record)]
    tools = record.get("tools") or None
    if "{% generation" in tokenizer.chat_template or "{%- generation" in tokenizer.chat_template:
        with limited(tokenizer.name_or_path):
            made = tokenizer.apply_chat_template(
                messages, tools=tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
            )
        if len(made["assistant_masks"]) != len(ids):
            raise ValueError("the chat template's {% generation %} marks do not fit its tokens")
        return [int(flag) for flag in made["assistant_masks"]]
    whole = _text(tokenizer, record, messages_of(record))
    spans = []
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _text(tokenizer, record, messages_of(record)[:place], add_generation_prompt=True)
        behind = _text(tokenizer, record, messages_of(record)[: place + 1])
        if not (whole.startswith(behind) and behind.startswith(before)):
            raise ValueError(
                "the chat template rewrites earlier turns and has no {% generation %} marks, so that "
                "calibrate.loss_mask cannot tell the assistant's tokens"
            )
        spans.append((len(before), len(behind)))
    offsets = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [int(any(low <= start < high for low, high in spans)) for start, _ in offsets]


def _text(
    tokenizer: Any, record: Record, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool = False
) -> str:
    from jinja2 import TemplateError

    if "messages" not in record:
        return str(record["text"])
    try:
        with limited(tokenizer.name_or_path):
            text: str = tokenizer.apply_chat_template(
                [_message(message) for message in messages],
                tools=record.get("tools") or None,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
    except (TemplateError, *FAILURES) as error:
        raise ValueError(f"the chat template fails on it: {error}") from error
    missing = [name for name in tools_offered(record) if name not in text]
    if missing:
        raise ValueError(f"the chat template drops its tools ({missing[0]} is nowhere in the text)")
    return text


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """The message with arguments as objects and content as text, which is what chat templates expect."""
    made = {**message, "content": message.get("content") or ""}
    if message.get("tool_calls"):
        made["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": arguments(call["function"])}}
            for call in message["tool_calls"]
        ]
    return made
