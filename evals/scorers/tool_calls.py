"""Tool calls, scored and sorted by the layer at which they fail.

Validity against the JSON Schema alone misses regressions (a 4-bit model can keep its syntax and lose its values), so
the metrics are kept apart, and each wrong answer is given the first layer at which it went wrong.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from evals.items import Call, Item, PossibleCall
from evals.schemas import parse_json, violation
from evals.scorers import Answer, Score, ToolCall
from evals.scorers.arguments import Compare, assign, possible
from evals.scorers.base import Generating
from sqtool.files import canonical_json

_MARKER = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)


def _attempts(text: str) -> list[str]:
    """The texts in an answer's content that look like tool calls: marked blocks, else a bare JSON call."""
    marked = [m.group(1).strip() for m in _MARKER.finditer(text)]
    if marked:
        return marked
    bare = text.strip().removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    return [bare] if bare[:1] in "[{" and '"name"' in bare and '"arguments"' in bare else []


def _calls_in(text: str) -> list[ToolCall]:
    """The calls that the text of an attempt holds; empty when it is none."""
    try:
        value = parse_json(text)
    except ValueError:
        return []
    values = value if isinstance(value, list) else [value]
    if not all(
        isinstance(v, dict) and isinstance(v.get("name"), str) and isinstance(v.get("arguments"), dict) for v in values
    ):
        return []
    try:
        return [ToolCall(v["name"], canonical_json(v["arguments"])) for v in values]
    except (ValueError, RecursionError):  # what can be read may still be too deep to write
        return []


def _arguments(call: ToolCall) -> dict[str, Any] | None:
    """The call's arguments, or None when they are not a JSON object. No text at all counts as no arguments."""
    try:
        value = parse_json(call.arguments) if call.arguments.strip() else {}
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _schemas(item: Item) -> dict[str, Mapping[str, Any] | None]:
    """Each offered tool's schema of its parameters."""
    return {tool["function"]["name"]: tool["function"].get("parameters") for tool in item.tools or ()}


def _schema_problem(item: Item, name: str, arguments: dict[str, Any]) -> str | None:
    """What makes the arguments invalid for the offered tool `name`, or None."""
    schemas = _schemas(item)
    if name not in schemas:
        return f"no tool {name!r} was offered"
    return None if schemas[name] is None else violation(schemas[name], arguments)


def _expected_calls(item: Item) -> tuple[Call | PossibleCall, ...] | None:
    if item.expected is None:
        return None
    return item.expected.calls if item.expected.possible_calls is None else item.expected.possible_calls


class ToolCalls(Generating):
    """schema_valid (only on items that expect calls): 1 when there is a call and every call names an offered tool
    with arguments that validate against its JSON Schema (draft 2020-12, `format` not asserted). call_match: 1 when
    the calls are the expected ones in any order; when none is expected, when none was tried. finish_reason_ok (only
    with the server's parser): 1 when the server says `tool_calls` exactly where it gives calls, for clients look at it.

    Failure layers, first match: failed_abstention; with no parsed call: truncated, left_in_content (a well-formed
    call that the server's parser dropped), unparseable, not_attempted; with parsed calls: truncated, unparseable
    (arguments are no JSON object), wrong_tool, left_in_content (some of the calls), wrong_count, schema_invalid,
    wrong_arguments (`faults` says which, and how); and wrong_finish_reason where all else is right (call_match is 1).
    """

    metrics: ClassVar[tuple[str, ...]] = ("schema_valid", "call_match", "finish_reason_ok")
    failures: ClassVar[tuple[str, ...]] = (
        "not_attempted",
        "left_in_content",
        "unparseable",
        "wrong_tool",
        "wrong_count",
        "schema_invalid",
        "wrong_arguments",
        "failed_abstention",
        "truncated",
        "wrong_finish_reason",
    )

    compare: Compare = Field(
        default="exact",
        description="exact: JSON equality. bfcl: the rules of the Berkeley Function Calling Leaderboard (case, spaces "
        "and some punctuation of strings do not count); needed for items with `possible_calls`.",
    )
    parser: Literal["server", "text"] = Field(
        default="server",
        description="server: the calls that the server parsed. text: also <tool_call> blocks (Hermes) in the text, as "
        "with `tool_choice: none` or a server without a parser; the difference is what the server's parser loses.",
    )

    def check(self, item: Item) -> tuple[str, str] | None:
        return self._check(item, published=False)

    def check_published(self, item: Item) -> tuple[str, str] | None:
        """`check` for files that nobody here may mend: possible answers may name parameters that the tool lacks. No
        call matches them, as in the leaderboard itself."""
        return self._check(item, published=True)

    def _check(self, item: Item, *, published: bool) -> tuple[str, str] | None:
        wanted = _expected_calls(item)
        if wanted is None:
            return "expected.calls", "missing, and the scorer tool_calls needs it"
        # An empty list is said on purpose: BFCL asks some of its irrelevant questions so.
        if not item.tools and (wanted or item.tools is None):
            return "tools", "missing: without tools nothing can be called or abstained from"
        for index, call in enumerate(wanted):
            if isinstance(call, PossibleCall):
                where = f"expected.possible_calls.{index}"
                if self.compare != "bfcl":
                    return where, "several acceptable values need the option `compare: bfcl`"
                problem = _possible_problem(item, call, published=published)
            else:
                where = f"expected.calls.{index}"
                problem = _schema_problem(item, call.name, call.arguments)
            if problem is not None:
                return where, f"the expected call is itself invalid: {problem}"
        return None

    def applies(self, item: Item) -> tuple[str, ...]:
        calls = self.metrics[:2] if _expected_calls(item) else self.metrics[1:2]
        return calls if self.parser == "text" else (*calls, "finish_reason_ok")

    def score(self, item: Item, answer: Answer) -> Score:
        attempts = _attempts(answer.text)
        calls = answer.tool_calls
        if self.parser == "text" and not calls:
            inside = [_calls_in(text) for text in attempts]
            # As vLLM's parser does it: one block that is no call spoils them all.
            calls = tuple(call for some in inside for call in some) if all(inside) else ()
        found = self._score(item, answer, calls, attempts)
        if self.parser == "text":
            return found
        stated = answer.finish_reason == "tool_calls"
        scores = {**found.scores, "finish_reason_ok": float(stated == bool(calls))}
        if found.failure is None and stated != bool(calls):
            detail = f"finish_reason is {answer.finish_reason!r} with {len(calls)} call(s)"
            return Score(scores, "wrong_finish_reason", detail)
        return Score(scores, found.failure, found.detail, found.faults)

    def _score(self, item: Item, answer: Answer, calls: Sequence[ToolCall], attempts: Sequence[str]) -> Score:
        wanted = _expected_calls(item)
        assert wanted is not None
        if not wanted:
            tried = len(calls) or len(attempts)
            if tried:
                return Score({"call_match": 0.0}, "failed_abstention", f"tried {tried} call(s)")
            return Score({"call_match": 1.0})
        cut = answer.finish_reason == "length"
        nothing = {"schema_valid": 0.0, "call_match": 0.0}
        if not calls:
            return Score(nothing, _no_call_layer(attempts, cut=cut))

        parsed = [(call.name, _arguments(call)) for call in calls]
        got = [(name, arguments) for name, arguments in parsed if arguments is not None]
        if len(got) < len(parsed):
            return Score(nothing, "truncated" if cut else "unparseable", "arguments are no JSON object")
        problems = [p for p in (_schema_problem(item, name, arguments) for name, arguments in got) if p is not None]
        if self.compare == "bfcl":
            wanted = tuple(possible(call) if isinstance(call, Call) else call for call in wanted)
        found = assign(wanted, got, {name: schema or {} for name, schema in _schemas(item).items()})
        scores = {"schema_valid": float(not problems), "call_match": float(found.matched)}
        if found.matched:
            return Score(scores)
        if cut:
            return Score(scores, "truncated")
        names, wanted_names = Counter(n for n, _ in got), Counter(c.name for c in wanted)
        if not names.keys() <= wanted_names.keys():
            extra = sorted(names.keys() - wanted_names.keys())
            return Score(scores, "wrong_tool", f"called {', '.join(extra)}")
        if names != wanted_names:
            dropped = self.parser == "server" and len(got) < len(wanted) and any(map(_calls_in, attempts))
            layer = "left_in_content" if dropped else "wrong_count"
            return Score(scores, layer, f"{len(got)} call(s), expected {len(wanted)}")
        if problems:
            return Score(scores, "schema_invalid", problems[0], found.faults)
        return Score(scores, "wrong_arguments", found.detail, found.faults)


def _no_call_layer(attempts: Sequence[str], *, cut: bool) -> str:
    if cut:
        return "truncated"
    if not attempts:
        return "not_attempted"
    return "left_in_content" if all(map(_calls_in, attempts)) else "unparseable"


def _possible_problem(item: Item, call: PossibleCall, *, published: bool) -> str | None:
    """What is wrong with a possible call. Its values need not fit the schema: BFCL allows names of variables."""
    schemas = _schemas(item)
    if call.name not in schemas:
        return f"no tool {call.name!r} was offered"
    if published:
        return None
    properties = (schemas[call.name] or {}).get("properties") or {}
    unknown = sorted(call.arguments.keys() - properties.keys()) if properties else []
    return f"the tool has no parameter {unknown[0]!r}" if unknown else None
