"""What a conversation has, by dimension: the things of which a calibration set should have what the traffic has."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from calibrate.conversation import NO_KIND, Record, arguments, calls, length_bin, messages_of, spoken
from calibrate.render import Rendered

DIMENSIONS = (
    "kinds", "tools", "parameters", "types", "enum_values", "n_tools", "scripts", "roles", "system_prompts",
    "prompt_length", "output_length", "special_tokens", "tokens",
)  # fmt: skip
OPEN = frozenset({"tools", "parameters", "enum_values", "system_prompts", "tokens"})
"""Dimensions without a fixed inventory: new conversations may bring new ones for ever."""
SCRIPT_SHARE = 0.05
"""A script counts for a conversation when it makes this share of its letters."""
SYSTEM_CHARS = 60
Features = dict[str, frozenset[str]]


def features(record: Record, rendered: Rendered, special: Mapping[int, str]) -> Features:
    """The features of one conversation, by dimension. `special` names the tokenizer's special and added tokens."""
    kind = record.get("kind")
    made: dict[str, Iterable[str]] = {
        "kinds": [kind] if kind and kind != NO_KIND else [],
        "n_tools": [length_bin(len(record.get("tools") or ()))],
        "scripts": _scripts(record),
        "roles": _roles(record),
        # Having none is as much of a choice as any prompt.
        "system_prompts": [_system(m["content"]) for m in messages_of(record) if _is_system(m)] or ["(none)"],
        "prompt_length": [length_bin(rendered.prompt)] if rendered.prompt else [],
        "output_length": [length_bin(rendered.output)] if rendered.output else [],
        "special_tokens": [special[token] for token in set(rendered.ids) & special.keys()],
        "tokens": map(str, set(rendered.ids) - special.keys()),
        **_of_calls(record),
    }
    return {name: frozenset(found) for name, found in made.items()}


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """Special and added tokens of a tokenizer, by id."""
    return {number: token for token, number in tokenizer.get_added_vocab().items()}


def _is_system(message: Mapping[str, Any]) -> bool:
    return message["role"] in ("system", "developer")


def _system(content: str | None) -> str:
    """A system prompt, recognizable and short."""
    text = content or ""
    if len(text) <= SYSTEM_CHARS:
        return text
    return f"{text[:SYSTEM_CHARS]}... ({hashlib.sha256(text.encode()).hexdigest()[:8]})"


def _roles(record: Record) -> set[str]:
    found = {message["role"] for message in messages_of(record)}
    return found | {"tool calls"} if any(m.get("tool_calls") for m in messages_of(record)) else found


def _of_calls(record: Record) -> dict[str, set[str]]:
    schemas = {tool["function"]["name"]: tool["function"].get("parameters") for tool in record.get("tools") or ()}
    found: dict[str, set[str]] = {"tools": set(), "parameters": set(), "types": set(), "enum_values": set()}
    for function in calls(record):
        name = function["name"]
        found["tools"].add(name)
        schema = schemas.get(name)
        declared = schema.get("properties") if isinstance(schema, Mapping) else None
        for key, value in arguments(function).items():
            about = declared.get(key) if isinstance(declared, Mapping) else None
            about = about if isinstance(about, Mapping) else {}
            found["parameters"].add(f"{name}.{key}")
            found["types"].add(_type(about, value))
            if about.get("enum"):
                found["enum_values"].add(f"{name}.{key}={value}")
    return found


def _type(schema: Mapping[str, Any], value: Any) -> str:
    """A parameter's type in words: its schema's, or its value's without one."""
    if schema.get("enum"):
        return "enum"
    declared = schema.get("type")
    named = next((t for t in declared if t != "null"), "null") if isinstance(declared, list) else declared
    if not isinstance(named, str):
        words = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
        named = words.get(type(value), "null")
    inner = schema.get("items")
    if named == "array" and isinstance(inner, Mapping) and isinstance(inner.get("type"), str):
        return f"array of {inner['type']}"
    return f"{named} ({schema['format']})" if isinstance(schema.get("format"), str) else named


def _scripts(record: Record) -> list[str]:
    counted: Counter[str] = Counter()
    for text in spoken(record):
        counted.update(filter(None, map(script, text)))
    least = SCRIPT_SHARE * counted.total()
    return [name for name, n in counted.items() if n >= least]


@cache
def script(character: str) -> str:
    """The writing system of a letter, by the first word of its Unicode name (`CJK` is Han); empty for other signs."""
    if not character.isalpha():
        return ""
    first = unicodedata.name(character, "UNKNOWN").partition(" ")[0]
    return {"CJK": "Han", "FULLWIDTH": "Latin", "HALFWIDTH": "Katakana"}.get(first, first.capitalize())


@dataclass
class Profile:
    """What many conversations have: how many of them have each feature, and how long they are."""

    conversations: int = 0
    having: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in DIMENSIONS})
    sets: dict[str, Counter[frozenset[str]]] = field(default_factory=lambda: {name: Counter() for name in DIMENSIONS})
    """How many have exactly this set of a dimension's features (not of tokens)."""
    tokens: Counter[str] = field(default_factory=Counter)
    """How often each token occurs, by its id."""
    prompt_lengths: list[int] = field(default_factory=list)
    output_lengths: list[int] = field(default_factory=list)
    strata: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Conversations by kind and bin of the prompt's length in characters."""

    def add(self, found: Features, rendered: Rendered) -> None:
        """Count one conversation."""
        self.conversations += 1
        for name, values in found.items():
            self.having[name].update(values)
            if values and name != "tokens":
                self.sets[name][values] += 1
        self.tokens.update(map(str, rendered.ids))
        self.prompt_lengths.append(rendered.prompt)
        if rendered.output:
            self.output_lengths.append(rendered.output)

    def weights(self, dimension: str) -> Counter[str]:
        """How much each feature of a dimension counts: occurrences for tokens, conversations for all else."""
        if dimension != "tokens":
            return self.having[dimension]
        return Counter({token: self.tokens[token] for token in self.having["tokens"]})

    def units(self, dimension: str) -> Iterable[tuple[frozenset[str], int]]:
        """What is covered or not as a whole, with its weight: a conversation with all its features, or a token."""
        if dimension != "tokens":
            return self.sets[dimension].items()
        return ((frozenset([token]), n) for token, n in self.weights("tokens").items())
