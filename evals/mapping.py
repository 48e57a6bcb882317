"""How a task makes items of rows: as they stand, or through templates, so that any data set works as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, field_validator

from evals.items import EXPECTED_KINDS, Expected, Item, RowError, Shape
from evals.rows import Row
from evals.templates import BadTemplateError, check_tree, render_tree, template
from sqtool.errors import did_you_mean
from sqtool.spec import Spec

MAPPED = ("prompt", "id", "kind", "cluster", "choices", "expected", "fields")
"""Keys of a task that make an item's keys from a row's columns."""
ITEM_KEYS = tuple(Item.model_fields)


class ItemMapping(Spec):
    """The part of a task that says what an item is made of.

    Without one of `MAPPED` a row is an item as it stands, and an unknown key in it is an error. With one, columns are
    variables of the templates, and what no template gives is taken from the row's key of that name, if it has one.
    """

    prompt: str | None = Field(
        default=None, description="Template of the user's message; without it the row has `messages`."
    )
    system: str | None = Field(
        default=None, description="Template of a system message, for items whose messages do not begin with one."
    )
    tools: str | tuple[dict[str, Any], ...] | None = Field(
        default=None,
        description="Tools for items without tools of their own: a list of OpenAI tools, or a JSON file of one.",
    )
    tool_choice: Literal["auto", "none", "required"] = Field(
        default="auto",
        description="What the server is told. none: the tools stand in the prompt and vLLM leaves the calls in the "
        "text, for `scorer: {name: tool_calls, options: {parser: text}}`.",
    )
    id: str | None = Field(default=None, description="Template of the id; default: the row's id, else its number.")
    kind: str | None = Field(default=None, description="Template of the kind, by which results are reported.")
    cluster: str | None = Field(default=None, description="Template of the cluster: items that share a source.")
    choices: str | tuple[str, ...] | None = Field(
        default=None, description="A list of templates, or one expression whose value is a list: multiple choice."
    )
    expected: str | dict[str, Any] | None = Field(
        default=None,
        description="Template of the expected text, or a mapping of templates with one of: "
        + ", ".join(EXPECTED_KINDS),
    )
    fields: dict[str, Any] | None = Field(default=None, description="Templates of fields to slice results by.")

    @field_validator(*MAPPED, "system")
    @classmethod
    def _templates(cls, value: Any) -> Any:
        check_tree(value)
        return value

    @field_validator("expected")
    @classmethod
    def _known_keys(cls, value: Any) -> Any:
        for key in value if isinstance(value, Mapping) else ():
            if key not in Expected.model_fields:
                raise ValueError(f"unknown key {key!r}; {did_you_mean(key, list(Expected.model_fields))}")
        return value

    def shape(self, tools: Sequence[Mapping[str, Any]] | None) -> Shape:
        """Rows to items' keys; `tools` is the content of `self.tools`."""
        mapped = any(getattr(self, key) is not None for key in MAPPED)

        def shape(number: int, row: Row) -> Row:
            out = self._mapped(number, row) if mapped else {k: v for k, v in row.items() if v is not None}
            if tools is not None and not out.get("tools"):
                out["tools"] = list(tools)
            if self.tool_choice != "auto":
                out.setdefault("tool_choice", self.tool_choice)
            self._add_system(row, out)
            return out

        return shape

    def _mapped(self, number: int, row: Row) -> Row:
        out = {key: row[key] for key in ITEM_KEYS if row.get(key) is not None}
        if self.prompt is not None:
            out["messages"] = [{"role": "user", "content": _text("prompt", self.prompt, row)}]
        for key in ("id", "kind", "cluster"):
            source = getattr(self, key)
            if source is not None:
                out[key] = _value(key, source, row)
            if out.get(key) is not None:
                out[key] = _as_text(out[key])
        out = {key: value for key, value in out.items() if value is not None}
        out.setdefault("id", f"{number:06d}")
        if self.choices is not None:
            out["choices"] = [_as_text(one) for one in _list("choices", _value("choices", self.choices, row))]
        if self.expected is not None:
            out["expected"] = self._expected(row)
        if self.fields is not None:
            out["fields"] = {key: _value(f"fields.{key}", source, row) for key, source in self.fields.items()}
        return out

    def _expected(self, row: Row) -> Row:
        sources = {"text": self.expected} if isinstance(self.expected, str) else self.expected or {}
        out: Row = {}
        for key, source in sources.items():
            field = f"expected.{key}"
            value = _value(field, source, row)
            if value is None and key != "aliases":
                raise RowError(field, f"null (from {source!r})")
            if key == "aliases" and value is not None:
                value = [_as_text(one) for one in _list(field, value)]
            out[key] = _as_text(value) if key in ("text", "pattern") else value
        return out

    def _add_system(self, row: Row, out: Row) -> None:
        messages = out.get("messages")
        if self.system is None or not isinstance(messages, list) or not messages:
            return
        first = messages[0]
        if not isinstance(first, Mapping) or first.get("role") not in ("system", "developer"):
            out["messages"] = [{"role": "system", "content": _text("system", self.system, row)}, *messages]


def _text(field: str, source: str, row: Row) -> str:
    try:
        return template(source).text(row)
    except BadTemplateError as error:
        raise RowError(field, str(error)) from None


def _value(field: str, source: Any, row: Row) -> Any:
    try:
        return render_tree(source, row)
    except BadTemplateError as error:
        raise RowError(field, str(error)) from None


def _as_text(value: Any) -> Any:
    """A number as text: ids and expected texts are often numbers in a data set. Anything else as it is."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _list(field: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise RowError(field, f"expected a list, found {value!r}")
    return value
