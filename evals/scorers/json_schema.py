"""Whether an answer is JSON that a JSON Schema allows."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from pydantic import Field, field_validator

from evals.items import Item
from evals.schemas import parse_json, schema_problem, violation
from evals.scorers import Answer, Score
from evals.scorers.base import NO_TEXT, Generating, no_text

_FENCE = re.compile(r"\s*```[A-Za-z]*\s*\n(.*?)\n?\s*```\s*", re.DOTALL)


class JsonSchema(Generating):
    """json_valid is 1 when the answer is one JSON value and nothing else; schema_valid when that value is allowed by
    the item's schema (`expected.json_schema`) or else the task's. Draft 2020-12; `format` is not asserted.

    Failure layers: `truncated` (also where the part would be JSON), `called_tool`, `empty`, `not_json`,
    `schema_invalid`.
    """

    metrics: ClassVar[tuple[str, ...]] = ("json_valid", "schema_valid")
    failures: ClassVar[tuple[str, ...]] = (*NO_TEXT, "not_json", "schema_invalid")

    json_schema: dict[str, Any] | None = Field(default=None, description="The schema of every item without its own.")
    strip_code_fence: bool = Field(
        default=False, description="Accept an answer that is wholly inside one Markdown code fence."
    )

    @field_validator("json_schema")
    @classmethod
    def _valid(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        problem = None if value is None else schema_problem(value)
        if problem is not None:
            raise ValueError(": ".join(part for part in problem if part))
        return value

    def _schema(self, item: Item) -> dict[str, Any] | None:
        own = item.expected.json_schema if item.expected is not None else None
        return self.json_schema if own is None else own

    def check(self, item: Item) -> tuple[str, str] | None:
        schema = self._schema(item)
        if schema is None:
            return "expected.json_schema", "missing, and the scorer json_schema has no option `json_schema`"
        problem = schema_problem(schema)
        if problem is None:
            return None
        return "expected.json_schema" + (f".{problem[0]}" if problem[0] else ""), problem[1]

    def score(self, item: Item, answer: Answer) -> Score:
        nothing = {"json_valid": 0.0, "schema_valid": 0.0}
        failure = no_text(answer)
        if failure is not None:
            return Score(nothing, failure)
        fenced = _FENCE.fullmatch(answer.text) if self.strip_code_fence else None
        try:
            value = parse_json(fenced.group(1) if fenced else answer.text)
        except ValueError as error:
            return Score(nothing, "not_json", str(error))
        problem = violation(self._schema(item), value)
        if problem is None:
            return Score({"json_valid": 1.0, "schema_valid": 1.0})
        return Score({"json_valid": 1.0, "schema_valid": 0.0}, "schema_invalid", problem)
