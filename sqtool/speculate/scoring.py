"""Which answers count as accepted: those to which their scorer gives 1.0 on its strictest metric.

For tool calls that is `call_match` (the right calls with the right arguments), for texts `exact_match`. A scorer that
is not in the table below counts as accepting when every one of its metrics is 1.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from evals.items import Expected, Item
from evals.scorers import Answer as ScoredAnswer
from evals.scorers import Scorer, ToolCall, make_scorer
from sqtool.files import canonical_json
from sqtool.speculate.traffic import Request

if TYPE_CHECKING:
    from sqtool.speculate.client import Answer

STRICTEST = {"tool_calls": "call_match", "json_schema": "schema_valid"}
"""The metric that a client's user would go by, where a scorer has several."""


def infer(expected: Mapping[str, Any] | None) -> tuple[str | None, dict[str, Any]]:
    """The scorer, with its options, for what an item expects; (None, {}) where nothing is expected."""
    if not expected:
        return None, {}
    if expected.get("calls") is not None:
        return "tool_calls", {}
    if expected.get("possible_calls") is not None:
        return "tool_calls", {"compare": "bfcl"}
    if expected.get("text") is not None:
        return "exact_match", {}
    for key, name in (("pattern", "regex"), ("json_schema", "json_schema")):
        if expected.get(key) is not None:
            return name, {}
    return None, {}


def item_of(request: Request) -> Item:
    """The request as an item that a scorer can look at; pydantic's `ValidationError` when it is none."""
    return Item(
        id=request.id,
        kind=request.kind,
        messages=request.body["messages"],
        tools=tuple(request.body["tools"]) if request.body.get("tools") else None,
        expected=Expected.model_validate(request.expected) if request.expected is not None else None,
        max_tokens=request.body["max_tokens"],
    )


@lru_cache(maxsize=64)
def _scorer(name: str, options: str) -> Scorer:
    import json

    return make_scorer(name, json.loads(options))


def problem(request: Request) -> tuple[str, str] | None:
    """(field, what is wrong) when the request's scorer could not score it; None otherwise."""
    if request.scorer is None:
        return None
    return _scorer(request.scorer, canonical_json(dict(request.options))).check(item_of(request))


def score(request: Request, answer: Answer) -> None:
    """Fill in `accepted` and `score` of an answer; both stay None where the request has no scorer. An answer that did
    not come whole is not accepted."""
    if request.scorer is None:
        return
    if not answer.ok:
        answer.accepted, answer.score = False, 0.0
        return
    given = ScoredAnswer(
        text=answer.text,
        tool_calls=tuple(ToolCall(call["name"], call["arguments"]) for call in answer.tool_calls),
        finish_reason=answer.finish_reason or "stop",
        prompt_tokens=answer.prompt_tokens or 0,
        completion_tokens=answer.completion_tokens or 0,
    )
    scorer = _scorer(request.scorer, canonical_json(dict(request.options)))
    scores = scorer.score(item_of(request), given).scores
    metric = STRICTEST.get(request.scorer)
    strictest = scores.get(metric) if metric is not None else None
    answer.score = min(scores.values(), default=0.0) if strictest is None else strictest
    answer.accepted = answer.score == 1.0
