"""Comparing tool calls with expected ones: argument by argument, and which call answers which expectation.

`exact` takes JSON equality. `bfcl` follows the published rules of the Berkeley Function Calling Leaderboard's AST
checker (https://gorilla.cs.berkeley.edu/blogs/8_berkeley_function_calling_leaderboard.html): each argument has a list
of acceptable values, "" among them makes it optional, strings are compared without case, spaces and ,./-_*^ and with
one kind of quote, an integer will do for a number but nothing else for an integer, a value whose acceptable values
are of another type than declared (a variable's name) is compared as it stands. Two things differ: an integer will do
for a number inside arrays too, and parallel calls are assigned to expected ones as a whole rather than first come,
first served, so that an order of the calls can never cost a match.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from evals.items import Call, PossibleCall
from evals.scorers import Fault

Compare = Literal["exact", "bfcl"]
Arguments = Mapping[str, Any]
NO_MATCH = 10_000
"""Cost of taking a call of another tool for an expected one: more than any number of wrong arguments."""
_DROPPED = re.compile(r"[ ,./\-_*^]")


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


def json_type(value: Any) -> str:
    """JSON Schema's name of a value's type; 5.0 is a number, 5 an integer."""
    for name, kind in (
        ("boolean", bool),
        ("integer", int),
        ("number", float),
        ("string", str),
        ("array", list | tuple),
        ("object", Mapping),
    ):
        if isinstance(value, kind):
            return name
    return "null"


def _fits(value: Any, declared: str) -> bool:
    found = json_type(value)
    return found == declared or (declared == "number" and found == "integer")


@dataclass(frozen=True)
class Wrong:
    """One wrong argument; `said` explains it to people."""

    argument: str
    wrong: Literal["missing", "unexpected", "type", "value"]
    said: str


def exact_faults(wanted: Arguments, got: Arguments) -> list[Wrong]:
    """What is wrong with arguments that should be exactly `wanted`."""
    out = []
    for key, value in wanted.items():
        if key not in got:
            out.append(Wrong(key, "missing", f"{key}: missing"))
        elif not json_equal(value, got[key]):
            kinds = {"number" if kind == "integer" else kind for kind in (json_type(value), json_type(got[key]))}
            wrong: Literal["type", "value"] = "type" if len(kinds) > 1 else "value"
            out.append(Wrong(key, wrong, f"{key}: expected {value!r}, found {got[key]!r}"))
    return out + [Wrong(key, "unexpected", f"{key}: not expected") for key in got if key not in wanted]


def bfcl_faults(acceptable: Mapping[str, Sequence[Any]], got: Arguments, schema: Mapping[str, Any]) -> list[Wrong]:
    """What is wrong with arguments by BFCL's rules; `schema` is that of the tool's parameters."""
    properties = schema.get("properties") or {}
    required = schema.get("required") or ()
    out = [
        Wrong(key, "missing", f"{key}: missing")
        for key in dict.fromkeys((*required, *acceptable))
        if key not in got and (key in required or "" not in acceptable[key])
    ]
    for key, value in got.items():
        if key not in acceptable or (properties and key not in properties):
            out.append(Wrong(key, "unexpected", f"{key}: not expected"))
            continue
        wrong = _bfcl_wrong(value, acceptable[key], properties.get(key) or {})
        if wrong is not None:
            out.append(Wrong(key, wrong, f"{key}: expected one of {list(acceptable[key])!r}, found {value!r}"))
    return out


def _bfcl_wrong(value: Any, answers: Sequence[Any], schema: Mapping[str, Any]) -> Literal["type", "value"] | None:
    if not answers:
        return "value"
    given = [answer for answer in answers if answer != ""] or list(answers)
    answered = json_type(given[0])
    declared = schema.get("type")
    if not isinstance(declared, str):
        declared = answered
    literal = declared == answered or {declared, answered} == {"number", "integer"}
    if not _fits(value, declared) and (literal or not _fits(value, answered)):
        return "type"
    if not literal:
        return None if any(json_equal(value, answer) for answer in answers) else "value"
    if declared == "array" and not _elements_fit(value, given, schema):
        return "type"
    return None if any(_bfcl_equal(value, answer) for answer in answers) else "value"


def _elements_fit(value: Sequence[Any], answers: Sequence[Any], schema: Mapping[str, Any]) -> bool:
    """Whether all elements have the declared type, or all that of the first element of one of the answers."""
    items = schema.get("items")
    declared = items.get("type") if isinstance(items, Mapping) else None
    if not isinstance(declared, str):
        return True
    kinds = [declared, *(json_type(answer[0]) for answer in answers if isinstance(answer, list) and answer)]
    return any(all(_fits(one, kind) for one in value) for kind in kinds)


def _bfcl_equal(value: Any, answer: Any) -> bool:
    if isinstance(value, str) and isinstance(answer, str):
        return standard_string(value) == standard_string(answer)
    if isinstance(value, list) and isinstance(answer, list):
        return len(value) == len(answer) and all(_bfcl_equal(x, y) for x, y in zip(value, answer, strict=True))
    if isinstance(value, dict) and isinstance(answer, dict):
        # Inside an object each key has a list of acceptable values again.
        listed = {key: inner if isinstance(inner, list) else [inner] for key, inner in answer.items()}
        missing = (key for key in listed if key not in value and "" not in listed[key])
        return next(missing, None) is None and all(
            key in listed and any(_bfcl_equal(inner, one) for one in listed[key]) for key, inner in value.items()
        )
    return json_equal(value, answer)


def standard_string(text: str) -> str:
    """BFCL's normal form of a string: no spaces and no ,./-_*^, lower case, double quotes."""
    return _DROPPED.sub("", text).lower().replace("'", '"')


def possible(call: Call) -> PossibleCall:
    """A call with one value for each argument, in the form of BFCL's possible answers."""
    return PossibleCall(name=call.name, arguments={key: [_listed(value)] for key, value in call.arguments.items()})


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: [_listed(inner)] for key, inner in value.items()}
    return [_listed(inner) for inner in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Assignment:
    """Expected calls beside the calls that come nearest to them, each of which stands for one at most."""

    matched: bool
    """Every expected call has its call, and no call is left over."""
    faults: tuple[Fault, ...]
    detail: str
    """The first expected call that has none, in words; empty when matched."""


def assign(
    wanted: Sequence[Call | PossibleCall],
    got: Sequence[tuple[str, Arguments]],
    schemas: Mapping[str, Mapping[str, Any]],
) -> Assignment:
    """Assign calls to expected ones so that as few arguments as possible are wrong; order does not matter.

    With several acceptable values taking the first call that fits would not do: it may be the only one that fits
    another expectation. `schemas` are the parameters' schemas of the tools on offer.
    """
    table = [[_faults(call, name, arguments, schemas) for name, arguments in got] for call in wanted]
    faults: list[Fault] = []
    detail = ""
    partner = _cheapest([[NO_MATCH if cell is None else len(cell) for cell in row] for row in table])
    for place, call in enumerate(wanted):
        at = partner.get(place)
        cell = None if at is None else table[place][at]
        if cell is None:
            detail = detail or f"{call.name}: not called"
            continue
        faults += [Fault(call.name, one.argument, one.wrong) for one in cell]
        if cell:
            detail = detail or f"{call.name}: " + "; ".join(one.said for one in cell)
    return Assignment(not detail and len(got) == len(wanted), tuple(faults), detail)


def _faults(
    wanted: Call | PossibleCall, name: str, arguments: Arguments, schemas: Mapping[str, Mapping[str, Any]]
) -> list[Wrong] | None:
    """None when another tool is called."""
    if name != wanted.name:
        return None
    if isinstance(wanted, Call):
        return exact_faults(wanted.arguments, arguments)
    return bfcl_faults(wanted.arguments, arguments, schemas.get(name, {}))


def _cheapest(costs: list[list[int]]) -> dict[int, int]:
    """Row -> column of the cheapest assignment."""
    if not costs or not costs[0]:
        return {}
    if len(costs) == len(costs[0]) == 1:
        return {0: 0}
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(costs)
    return {int(row): int(column) for row, column in zip(rows, columns, strict=True)}
