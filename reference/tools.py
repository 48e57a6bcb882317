"""Tool-call records: invented tools, a request that fills some of their parameters, and the right calls."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from reference.records import Record, split_of
from reference.words import ENUM_VALUES, MODIFIERS, NOUNS, PARAM_HEADS, VERB_WORDS, VERBS, random_word

# Never in training, in any role: the test items must generalise to tools not seen.
HELD_OUT_TOOLS = frozenset(
    {("book", "taxi"), ("track", "parcel"), ("refund", "ticket"), ("translate", "document"), ("schedule", "exam")}
    | {(v, n) for v in VERBS for n in NOUNS if split_of("tool", v, n) == "test"}
)
ACTIONS = [(v, n) for v in VERBS for n in NOUNS if (v, n) not in HELD_OUT_TOOLS]
UNSEEN_ACTIONS = sorted(HELD_OUT_TOOLS)
TYPES = ["string", "string", "string", "integer", "integer", "number", "boolean", "enum", "array", "date"]
ABSTAIN = "None of these tools can do that."


@dataclass
class Param:
    name: str
    label: str
    type: str
    schema: dict[str, Any]
    required: bool


@dataclass
class Tool:
    verb: str
    noun: str
    name: str
    params: list[Param]
    description: str

    def openai(self) -> dict[str, Any]:
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": {
                    "type": "object",
                    "properties": {p.name: p.schema for p in self.params},
                    "required": [p.name for p in self.params if p.required],
                },
            },
        }


def _param(rng: random.Random, taken: set[str]) -> Param:
    while True:
        kind = rng.choice(TYPES)
        words = [rng.choice(PARAM_HEADS[kind])]
        if rng.random() < 0.35 and kind != "enum":
            words.insert(0, rng.choice(MODIFIERS))
        if not taken.intersection(words):
            break
    taken.update(words)
    label = " ".join(words)
    schema: dict[str, Any]
    if kind == "enum":
        pool = ENUM_VALUES[words[0]] if rng.random() < 0.7 else [random_word(rng) for _ in range(4)]
        schema = {"type": "string", "enum": rng.sample(pool, rng.randint(2, len(pool)))}
    elif kind == "array":
        schema = {"type": "array", "items": {"type": rng.choice(["string", "string", "integer"])}}
    elif kind == "date":
        schema = {"type": "string", "format": "date"}
    else:
        schema = {"type": kind}
    if rng.random() < 0.25:
        schema["description"] = rng.choice([f"the {label}", label])
    name = "_".join(words) if rng.random() < 0.8 else words[0] + "".join(w.capitalize() for w in words[1:])
    return Param(name, label, kind, schema, rng.random() < 0.55)


def make_tool(rng: random.Random, verb: str, noun: str, n_params: int | None = None) -> Tool:
    """A tool for `verb noun` with 1 to 5 fresh parameters, at least one of them required."""
    taken: set[str] = {verb, noun}
    n = n_params if n_params is not None else rng.choice((1, 2, 2, 3, 3, 4, 5))
    params = [_param(rng, taken) for _ in range(n)]
    if not any(p.required for p in params):
        params[0].required = True
    name = f"{verb}_{noun}" if rng.random() < 0.85 else f"{noun}_{verb}"
    description = rng.choice([f"{verb.capitalize()} a {noun}.", f"{verb.capitalize()} {noun}.", ""])
    return Tool(verb, noun, name, params, description)


def _date(rng: random.Random) -> str:
    return f"{rng.randint(2020, 2039)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"


def _text(rng: random.Random, names: list[str]) -> str:
    n = rng.choice((1, 1, 2, 3))
    return " ".join(rng.choice(names) if rng.random() < 0.4 else random_word(rng) for _ in range(n))


def _value(rng: random.Random, p: Param, names: list[str]) -> Any:
    if p.type == "string":
        return _text(rng, names)
    if p.type == "integer":
        return rng.choice((rng.randint(1, 12), rng.randint(1, 99), rng.randint(100, 9999)))
    if p.type == "number":
        return (
            round(rng.choice((rng.uniform(0, 10), rng.uniform(10, 500))), 1) + 0.0
            if rng.random() < 0.8
            else rng.randint(1, 200)
        )
    if p.type == "boolean":
        return rng.random() < 0.5
    if p.type == "enum":
        return rng.choice(p.schema["enum"])
    if p.type == "date":
        return _date(rng)
    n = rng.randint(1, 4)
    if p.schema["items"]["type"] == "integer":
        return [rng.randint(1, 99) for _ in range(n)]
    return [random_word(rng) if rng.random() < 0.7 else rng.choice(names) for _ in range(n)]


def _listing(values: list[Any]) -> str:
    words = [str(v) for v in values]
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _phrase(rng: random.Random, p: Param, value: Any) -> str:
    if p.type == "boolean":
        return rng.choice((f"{p.label} {'yes' if value else 'no'}", f"{'with' if value else 'without'} {p.label}"))
    text = _listing(value) if isinstance(value, list) else str(value)
    return rng.choice((f"{p.label} {text}", f"{p.label}: {text}", f"the {p.label} is {text}"))


def _ask(rng: random.Random, tool: Tool, arguments: dict[str, Any]) -> str:
    """One request sentence that carries the arguments, in an order of its own."""
    verb = rng.choice(VERB_WORDS.get(tool.verb, [tool.verb]))
    phrases = [_phrase(rng, p, arguments[p.name]) for p in tool.params if p.name in arguments]
    rng.shuffle(phrases)
    article = rng.choice(("a ", "the ", ""))
    head = rng.choice(("", "", "please ", "I want to ", "can you ")) + f"{verb} {article}{tool.noun}"
    return head + (rng.choice((", ", ": ", " with ", "; ")) + ", ".join(phrases) if phrases else "")


def _fill(rng: random.Random, tool: Tool, names: list[str]) -> dict[str, Any]:
    """Every required parameter and about half of the optional ones, in the schema's order."""
    return {p.name: _value(rng, p, names) for p in tool.params if p.required or rng.random() < 0.5}


def _offer(rng: random.Random, wanted: list[Tool], n: int, actions: list[tuple[str, str]]) -> list[Tool]:
    """`wanted` among n tools; half of the others are hard (they share the verb or the noun with a wanted one)."""
    used = {(t.verb, t.noun) for t in wanted}
    tools = list(wanted)
    while len(tools) < n:
        verb, noun = rng.choice(actions)
        if rng.random() < 0.5:
            like = rng.choice(wanted)
            verb, noun = (like.verb, noun) if rng.random() < 0.5 else (verb, like.noun)
        if (verb, noun) in used or ((verb, noun) in HELD_OUT_TOOLS and actions is ACTIONS):
            continue
        used.add((verb, noun))
        tools.append(make_tool(rng, verb, noun))
    rng.shuffle(tools)
    return tools


def make(rng: random.Random, kind: str, names: list[str], split: str = "train") -> Record:
    """One record of a tool kind; its slots (request and tools) belong to `split`.

    Test items use tools that never occur in training for about a third of the items.
    """
    while True:
        unseen = split == "test" and rng.random() < 0.35
        wanted_actions = UNSEEN_ACTIONS if unseen else ACTIONS
        n_tools = {"tool_simple": 1, "tool_multiple": rng.randint(2, 8), "tool_parallel": rng.randint(1, 5),
                   "tool_irrelevance": rng.randint(1, 6), "long_tools": rng.randint(9, 16)}[kind]  # fmt: skip
        n_calls = rng.choice((2, 2, 2, 3)) if kind == "tool_parallel" else 1
        n_wanted = min(n_tools, n_calls, 1 if rng.random() < 0.4 else n_calls)
        pairs = rng.sample(wanted_actions, n_wanted)
        wanted = [make_tool(rng, *pair) for pair in pairs]
        tools = _offer(rng, wanted, n_tools, ACTIONS)
        chosen = [wanted[i % n_wanted] for i in range(n_calls)]
        calls = [{"name": t.name, "arguments": _fill(rng, t, names)} for t in chosen]
        if kind == "tool_irrelevance":
            # The right tool is not offered; the request is still a well-formed one.
            tools = _offer(rng, wanted, n_tools + 1, ACTIONS)
            tools.remove(wanted[0])
        asks = [_ask(rng, t, c["arguments"]) for t, c in zip(chosen, calls, strict=True)]
        request = rng.choice(("; also ", ". Then ", ", and then ")).join(asks)
        request = request[0].upper() + request[1:] + rng.choice((".", ".", ""))
        if split_of("tools", request) != split:
            continue
        messages = [{"role": "user", "content": request}]
        if rng.random() < 0.15:
            system = rng.choice(
                ("You are a helpful assistant.", "Use the tools when they fit.", "Today is " + _date(rng) + ".")
            )
            messages.insert(0, {"role": "system", "content": system})
        abstain = kind == "tool_irrelevance"
        return Record(
            kind, messages, text=ABSTAIN if abstain else "", calls=[] if abstain else calls,
            tools=[t.openai() for t in tools],
            fields={"n_tools": n_tools, "n_calls": 0 if abstain else n_calls, "unseen_tool": unseen},
        )  # fmt: skip
