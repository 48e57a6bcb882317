"""A regular expression: an answer must match it, or what it finds is compared with the expected text."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from evals.items import Item
from evals.scorers import Answer, Score
from evals.scorers.base import NO_TEXT, Generating, no_text
from evals.scorers.exact_match import normalise


@lru_cache(maxsize=4096)
def _compiled(pattern: str, flags: int) -> re.Pattern[str]:
    return re.compile(pattern, flags)


class Regex(Generating):
    """regex is 1, else 0, when

    - the item expects a text: what `pattern` extracts (its group 1 if it has groups, else the whole match) equals the
      text or an alias, runs of whitespace counting as one space;
    - the item expects a `pattern`, or nothing and `pattern` is given: the answer matches it.

    Failure layers: `truncated`, `called_tool`, `empty`, `no_match`, `wrong_text` (extracted, but another text).
    """

    metrics: ClassVar[tuple[str, ...]] = ("regex",)
    failures: ClassVar[tuple[str, ...]] = (*NO_TEXT, "no_match", "wrong_text")

    pattern: str | None = Field(default=None, description="A pattern of Python's `re` for every item.")
    match: Literal["search", "fullmatch"] = Field(
        default="search", description="search: anywhere in the answer; fullmatch: the whole answer, ends stripped."
    )
    take: Literal["first", "last"] = Field(default="first", description="Which match counts when a text is extracted.")
    ignore_case: bool = Field(default=False, description="Match and compare without regard to case.")
    multiline: bool = Field(default=False, description="^ and $ stand for the ends of lines.")
    dot_all: bool = Field(default=False, description="A dot matches the end of a line too.")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        problem = None if value is None else _problem(value)
        if problem is not None:
            raise ValueError(problem)
        return value

    def check(self, item: Item) -> tuple[str, str] | None:
        own = item.expected.pattern if item.expected is not None else None
        if own is not None:
            problem = _problem(own)
            return None if problem is None else ("expected.pattern", problem)
        if self.pattern is None:
            return "expected.pattern", "missing, and the scorer regex has no option `pattern`"
        if item.expected is None:
            return None
        if item.expected.text is None:
            return "expected.text", "missing: the scorer regex compares with a text, or with nothing at all"
        if not all(map(normalise, item.expected.texts())):
            return "expected.text", "empty: extracting nothing would be right"
        return None

    def score(self, item: Item, answer: Answer) -> Score:
        failure = no_text(answer)
        wanted = item.expected.texts() if item.expected is not None else ()
        pattern = item.expected.pattern if item.expected is not None and item.expected.pattern else self.pattern
        assert pattern is not None
        # The last match of a cut answer may be a part of what it would have been.
        cut = failure == "truncated" and self.take == "last" and bool(wanted)
        found = [] if answer.tool_calls or cut else self._found(pattern, answer.text)
        if not found:
            return Score({"regex": 0.0}, failure or "no_match")
        if not wanted:
            return Score({"regex": 1.0})
        said = found[0] if self.take == "first" else found[-1]
        if self._normal(said) in {self._normal(text) for text in wanted}:
            return Score({"regex": 1.0})
        return Score({"regex": 0.0}, failure or "wrong_text", f"extracted {said!r}")

    def _normal(self, text: str) -> str:
        return normalise(text, ignore_case=self.ignore_case)

    def _found(self, pattern: str, text: str) -> list[str]:
        flags = re.IGNORECASE * self.ignore_case | re.MULTILINE * self.multiline | re.DOTALL * self.dot_all
        compiled = _compiled(pattern, int(flags))
        if self.match == "fullmatch":
            whole = compiled.fullmatch(text.strip())
            matches = [] if whole is None else [whole]
        else:
            matches = list(compiled.finditer(text))
        return [(m.group(1) or "") if compiled.groups else m.group() for m in matches]


def _problem(pattern: str) -> str | None:
    try:
        _compiled(pattern, 0)
    except re.error as error:
        return f"not a regular expression: {error}"
    return None
