"""Tool calls, scored and sorted by the layer at which they fail.

Validity against the JSON Schema alone misses regressions (a 4-bit model can keep its syntax and lose its values), so
two metrics are kept apart, and each wrong answer is given the first layer at which it went wrong.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

from evals.items import Call, Item
from evals.scorers import Answer, Score, ToolCall
from sqtool.spec import Spec

_MARKER = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def parse_json(text: str) -> Any:
    """The value of a JSON text as the standard has it (no NaN, no Infinity); `ValueError` when it is none."""
    return json.loads(text, parse_constant=_reject_constant)


def json_equal(a: Any, b: Any) -> bool:
    """Equality of JSON values: numbers by value (5 equals 5.0), true is not 1, strings exactly, arrays in order,
    objects regardless of order."""
    if isinstance(a, bool) or isinstance(b, bool):
        return isinstance(a, bool) and isinstance(b, bool) and a == b
    if isinstance(a, int | float) and isinstance(b, int | float):
        return a == b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(json_equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(json_equal(a[k], b[k]) for k in a)
    return type(a) is type(b) and bool(a == b)


def _attempts(text: str) -> list[str]:
    """The texts in an answer's content that look like tool calls: marked blocks, else a bare JSON call."""
    marked = [m.group(1).strip() for m in _MARKER.finditer(text)]
    if marked:
        return marked
    bare = text.strip().removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    return [bare] if bare[:1] in "[{" and '"name"' in bare and '"arguments"' in bare else []


def _is_call(text: str) -> bool:
    try:
        value = parse_json(text)
    except ValueError:
        return False
    values = value if isinstance(value, list) and value else [value]
    return all(
        isinstance(v, dict) and isinstance(v.get("name"), str) and isinstance(v.get("arguments"), dict) for v in values
    )


def _arguments(call: ToolCall) -> dict[str, Any] | None:
    """The call's arguments, or None when they are not a JSON object. No text at all counts as no arguments."""
    try:
        value = parse_json(call.arguments) if call.arguments.strip() else {}
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _schema_problem(item: Item, name: str, arguments: dict[str, Any]) -> str | None:
    """What makes the arguments invalid for the offered tool `name`, or None."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    for tool in item.tools or ():
        function = tool["function"]
        if function["name"] == name:
            schema = function.get("parameters")
            error = best_match(Draft202012Validator(schema).iter_errors(arguments)) if schema is not None else None
            if error is None:
                return None
            where = ".".join(str(p) for p in error.absolute_path)
            return f"{where}: {error.message}" if where else error.message
    return f"no tool {name!r} was offered"


def _unmatched(wanted: Sequence[Call], got: Sequence[tuple[str, dict[str, Any]]]) -> list[Call]:
    """Expected calls without an equal one among `got`, each of which counts once. Order does not matter.

    Equality is transitive, so taking the first equal call is as good as the best assignment."""
    left = list(got)
    missing = []
    for call in wanted:
        for index, (name, arguments) in enumerate(left):
            if name == call.name and json_equal(call.arguments, arguments):
                del left[index]
                break
        else:
            missing.append(call)
    return missing


def _argument_detail(call: Call, got: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Which argument of an unmatched call is wrong, against the nearest call of the same tool."""
    same = [arguments for name, arguments in got if name == call.name]

    def wrong(arguments: dict[str, Any]) -> list[str]:
        out = [
            f"{key}: missing" if key not in arguments else f"{key}: expected {value!r}, found {arguments[key]!r}"
            for key, value in call.arguments.items()
            if key not in arguments or not json_equal(value, arguments[key])
        ]
        return out + [f"{key}: not expected" for key in arguments if key not in call.arguments]

    nearest = sorted((wrong(arguments) for arguments in same), key=len)
    return f"{call.name}: " + "; ".join(nearest[0] if nearest else ["not called"])


class ToolCalls(Spec):
    """schema_valid (only on items that expect calls): 1 when there is a call and every call names an offered tool
    with arguments that validate against its JSON Schema (draft 2020-12, `format` not asserted). call_match: 1 when
    the calls are the expected ones, arguments exactly, in any order; with `expected.calls == []`, when none was tried.

    Failure layers, first match: failed_abstention; with no parsed call: truncated, left_in_content (a well-formed
    call that the server's parser dropped), unparseable, not_attempted; with parsed calls: truncated, unparseable
    (arguments are no JSON object), wrong_tool, wrong_count, schema_invalid, wrong_arguments.
    """

    asks: ClassVar[str] = "generate"
    metrics: ClassVar[tuple[str, ...]] = ("schema_valid", "call_match")
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
    )

    def continuations(self, _item: Item) -> tuple[str, ...]:
        return ()

    def check(self, item: Item) -> tuple[str, str] | None:
        if item.expected is None or item.expected.calls is None:
            return "expected.calls", "missing, and the scorer tool_calls needs it"
        if not item.tools:
            return "tools", "missing: without tools nothing can be called or abstained from"
        for index, call in enumerate(item.expected.calls):
            problem = _schema_problem(item, call.name, call.arguments)
            if problem is not None:
                return f"expected.calls.{index}", f"the expected call is itself invalid: {problem}"
        return None

    def applies(self, item: Item) -> tuple[str, ...]:
        assert item.expected is not None
        return self.metrics if item.expected.calls else ("call_match",)

    def score(self, item: Item, answer: Answer) -> Score:
        assert item.expected is not None
        assert item.expected.calls is not None
        wanted = item.expected.calls
        attempts = _attempts(answer.text)
        if not wanted:
            tried = [c.name for c in answer.tool_calls] or attempts
            if tried:
                return Score({"call_match": 0.0}, "failed_abstention", f"tried {len(tried)} call(s)")
            return Score({"call_match": 1.0})
        cut = answer.finish_reason == "length"
        if not answer.tool_calls:
            return Score({"schema_valid": 0.0, "call_match": 0.0}, _no_call_layer(attempts, cut=cut))

        parsed = [(call.name, _arguments(call)) for call in answer.tool_calls]
        got = [(name, arguments) for name, arguments in parsed if arguments is not None]
        if len(got) < len(parsed):
            layer = "truncated" if cut else "unparseable"
            return Score({"schema_valid": 0.0, "call_match": 0.0}, layer, "arguments are no JSON object")
        problems = [p for p in (_schema_problem(item, name, arguments) for name, arguments in got) if p is not None]
        missing = _unmatched(wanted, got)
        match = not missing and len(got) == len(wanted)
        scores = {"schema_valid": float(not problems), "call_match": float(match)}
        if match:
            return Score(scores)
        if cut:
            return Score(scores, "truncated")
        names, wanted_names = Counter(n for n, _ in got), Counter(c.name for c in wanted)
        if not names.keys() <= wanted_names.keys():
            extra = sorted(names.keys() - wanted_names.keys())
            return Score(scores, "wrong_tool", f"called {', '.join(extra)}")
        if names != wanted_names:
            return Score(scores, "wrong_count", f"{len(got)} call(s), expected {len(wanted)}")
        if problems:
            return Score(scores, "schema_invalid", problems[0])
        return Score(scores, "wrong_arguments", _argument_detail(missing[0], got))


def _no_call_layer(attempts: Sequence[str], *, cut: bool) -> str:
    if cut:
        return "truncated"
    if not attempts:
        return "not_attempted"
    return "left_in_content" if all(_is_call(text) for text in attempts) else "unparseable"
