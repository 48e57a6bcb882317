"""Texts on which two models' distributions are compared: prompt and answer of test items, and prose."""

from __future__ import annotations

import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from evals.config_diff import chat_templates
from evals.items import Item, load_items, take
from evals.spec import DriftSpec, EvaluateSpec
from evals.tasks import load_tasks
from sqtool.errors import DataError, UsageError
from sqtool.files import read_jsonl
from sqtool.templates import limited


@dataclass(frozen=True)
class Text:
    """Token ids of one text. Tokens from index `answer_start` on are the answer; it may equal the length. `fields` are
    the item's own, and the script that it is written in."""

    id: str
    kind: str
    tokens: Sequence[int]
    answer_start: int
    fields: Mapping[str, str] = field(default_factory=dict)


def round_robin(items: Iterable[Item], limit: int) -> list[Item]:
    """`limit` items, one of each kind in turn, so that a rare kind is not crowded out. Within a kind evenly spread."""
    kinds: dict[str, list[Item]] = {}
    for item in items:
        kinds.setdefault(item.kind, []).append(item)
    share = -(-limit // max(1, len(kinds)))
    spread = []
    for group in kinds.values():
        first = take(group, share)
        chosen = {id(item) for item in first}
        # A small kind leaves room for more of the others.
        spread.append(first + [item for item in group if id(item) not in chosen])
    turns = [item for turn in zip_longest(*spread) for item in turn if item is not None]
    return turns[:limit]


def _answer(item: Item, answers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The assistant's message that answers the item: the expected one, else the one that a model gave."""
    if item.expected is not None and item.expected.text is not None:
        return {"role": "assistant", "content": item.expected.text}
    if item.expected is not None and item.expected.choice is not None and item.choices:
        return {"role": "assistant", "content": item.choices[item.expected.choice]}
    if item.expected is not None:
        calls = item.expected.calls or [call.first() for call in item.expected.possible_calls or ()]
        if calls:
            return _calls_message([(call.name, call.arguments) for call in calls])
    given = answers.get(item.id)
    if given is not None and given["text"]:
        return {"role": "assistant", "content": given["text"]}
    return None


def _calls_message(calls: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": n, "arguments": a}} for n, a in calls],
    }


def render(
    item: Item, tokenizer: Any, max_length: int, answers: Mapping[str, Mapping[str, Any]] | None = None
) -> Text | None:
    """The item's text under the model's chat template, at most `max_length` tokens; None when fewer than two."""
    messages = [message.model_dump(exclude_unset=True) for message in item.messages]
    answer = _answer(item, answers or {})
    if answer is None and len(messages) > 1 and messages[-1]["role"] == "assistant":
        answer = messages.pop()
    tools = list(item.tools) if item.tools else None

    def ids(conversation: list[dict[str, Any]], *, prompt: bool) -> list[int]:
        with limited(tokenizer.name_or_path):
            text = tokenizer.apply_chat_template(
                conversation, tools=tools, tokenize=False, add_generation_prompt=prompt
            )
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    alone = len(messages) == 1 and messages[0]["role"] == "assistant"
    head = ids(messages, prompt=not alone)
    full = ids([*messages, answer], prompt=False) if answer is not None else head
    start = 0
    for start, (a, b) in enumerate(zip(head, full, strict=False)):  # noqa: B007 - the index is the result
        if a != b:
            break
    else:
        start = min(len(head), len(full))
    full = full[:max_length]
    if len(full) < 2:
        return None
    # Four bytes a token; a tuple of numbers takes ten times that.
    return Text(item.id, item.kind or "none", array("i", full), min(start, len(full)), _fields(item))


def _fields(item: Item) -> dict[str, str]:
    """The item's fields as texts, without those that are null."""
    said = " ".join(m.content for m in item.messages if isinstance(m.content, str) and m.role in ("user", "assistant"))
    return {"script": script(said), **{k: str(v) for k, v in item.slice_fields().items() if v is not None}}


def script(text: str) -> str:
    """The script most letters of a text are of, as Unicode names it (latin, cyrillic, cjk, ...); `none` without any."""
    letters = Counter(character for character in text if character.isalpha())
    scripts: Counter[str] = Counter()
    for letter, count in letters.items():
        scripts[unicodedata.name(letter, "unknown").split()[0].lower()] += count
    return scripts.most_common(1)[0][0] if scripts else "none"


def _prose(drift: DriftSpec, root: Path) -> list[Item]:
    if drift.prose is None or drift.prose_items == 0:
        return []
    path = root / drift.prose
    if not path.is_file():
        if drift.prose == DriftSpec.model_fields["prose"].default:
            return []
        raise DataError(path, "no such file", field="evaluate.drift.prose")
    return take(load_items(path), drift.prose_items)


def _no_template() -> UsageError:
    return UsageError(
        "the model's tokenizer has no chat template, so test items cannot be rendered for drift",
        remedy="Add a chat template to the model folder, or set `evaluate.drift: null`.",
    )


def _no_texts() -> UsageError:
    return UsageError(
        "drift has no texts: evaluate.tasks has no items, and evaluate.drift.prose no file",
        remedy="Name prose (JSONL), or set `evaluate.drift: null`.",
    )


def why_none(spec: EvaluateSpec, drift: DriftSpec, model: Path, root: Path) -> UsageError | None:
    """Why `load_texts` would give none for the checkpoint in `model`, found without loading anything."""
    prose = drift.prose is not None and drift.prose_items > 0 and (root / drift.prose).is_file()
    if not spec.tasks and not prose:
        return _no_texts()
    # A folder without a tokenizer has worse faults, which others report.
    has_tokenizer = any((model / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    return _no_template() if has_tokenizer and not chat_templates(model) else None


def load_texts(
    spec: EvaluateSpec, drift: DriftSpec, tokenizer: Any, root: Path, answers: Path | None = None
) -> list[Text]:
    """Texts of `drift.items` test items, kinds in turn, and of the prose; longest first.

    `answers` is a records folder of an evaluation (by default none): items without an expected answer, such as those
    where no tool should be called, then get the answer given there; otherwise they are compared on their prompt only.
    """
    if not tokenizer.chat_template:
        raise _no_template()
    tasks = load_tasks(spec.model_copy(update={"limit": None}), root)
    # Ids are unique within a task only.
    given: dict[tuple[str, str], dict[str, Any]] = {}
    if answers is not None:
        for task in tasks:
            path = answers / f"{task.name}.jsonl"
            for _, row in read_jsonl(path) if path.is_file() else ():
                given[task.name, row["id"]] = row["output"]
    task_of = {id(item): task.name for task in tasks for item in task.items}

    def rendered(item: Item) -> Text | None:
        answer = given.get((task_of.get(id(item), ""), item.id))
        return render(item, tokenizer, drift.max_length, {} if answer is None else {item.id: answer})

    items = round_robin((item for task in tasks for item in task.items), drift.items)
    texts = [rendered(item) for item in [*items, *_prose(drift, root)]]
    kept = [text for text in texts if text is not None]
    if not kept:
        raise _no_texts()
    return sorted(kept, key=lambda text: (-len(text.tokens), text.id))


def padded_length(tokens: int) -> int:
    """The length that a text of so many tokens is padded to: one of eight to an octave, so that many texts make few
    shapes. Libraries keep kernels for each shape that they have seen. No length crosses a power of two, where some
    position embeddings change."""
    step = max(8, (1 << (tokens - 1).bit_length()) // 16)
    return -(-tokens // step) * step


def batches(texts: Sequence[Text], batch_tokens: int) -> list[list[Text]]:
    """Neighbours grouped so that count times padded length is at most `batch_tokens` (a longer text stands alone)."""
    groups: list[list[Text]] = []
    for text in texts:
        longest = max(len(groups[-1][0].tokens), len(text.tokens)) if groups else 0
        if groups and (len(groups[-1]) + 1) * padded_length(longest) <= batch_tokens:
            groups[-1].append(text)
        else:
            groups.append([text])
    return groups
