"""A user's own function, found among the entry points of installed packages.

A task file holds no code and names no module: what may run is what somebody installed. The package declares

    [project.entry-points."sqtool.scorers"]
    my_check = "my_package.checks:my_check"
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator

from evals.items import Item
from evals.scorers import Answer, Score
from evals.scorers.base import Generating
from sqtool.errors import DataError, UsageError, did_you_mean

GROUP = "sqtool.scorers"
REMEDY = (
    f'Put the function into a package, declare it there under [project.entry-points."{GROUP}"] as NAME = '
    '"module:function", install the package and give the NAME.'
)


def _entry(name: str) -> EntryPoint | None:
    return next(iter(entry_points(group=GROUP, name=name)), None)


class Function(Generating):
    """passed is what the function makes of an item and its answer: true, false or a number in [0, 1].

    It is called as `function(item, answer)` with two dictionaries: the item as it stands in a file, and
    {"text", "tool_calls": [{"name", "arguments"}], "finish_reason", "prompt_tokens", "completion_tokens"}. It should
    depend on nothing else. An exception, or any other value, ends the evaluation with an error: an answer that could
    not be judged is never counted as right.

    Failure layer: `not_passed` (less than 1).
    """

    metrics: ClassVar[tuple[str, ...]] = ("passed",)
    failures: ClassVar[tuple[str, ...]] = ("not_passed",)

    name: str = Field(description=f"Name of an entry point of the group {GROUP}.")

    @field_validator("name")
    @classmethod
    def _is_installed(cls, value: str) -> str:
        if _entry(value) is None:
            known = [entry.name for entry in entry_points(group=GROUP)]
            hint = did_you_mean(value, known) or "no installed package declares any"
            raise ValueError(f"no entry point {value!r} of the group {GROUP}; {hint}. {REMEDY}")
        return value

    def check(self, _item: Item) -> tuple[str, str] | None:
        _ = self.function  # a declaration that leads nowhere is found before anything runs
        return None

    @cached_property
    def function(self) -> Callable[[dict[str, Any], dict[str, Any]], Any]:
        """The user's function; `UsageError` where the package's declaration leads nowhere."""
        entry = _entry(self.name)
        assert entry is not None
        try:
            found: Any = entry.load()
        except (ImportError, AttributeError) as error:
            raise UsageError(f"scorer function: {self.name} ({entry.value}) cannot be loaded: {error}") from None
        if not callable(found):
            raise UsageError(f"scorer function: {self.name} ({entry.value}) is no function")
        return found  # type: ignore[no-any-return]

    def score(self, item: Item, answer: Answer) -> Score:
        from evals.records import answer_json

        where = f"item {item.id}"
        try:
            value = self.function(item.model_dump(mode="json", exclude_none=True), answer_json(answer))
        except Exception as error:
            message = f"the function {self.name} raised {type(error).__name__}: {error}"
            raise DataError(where, message, remedy="Answers are kept: repair it and run again.") from error
        if not isinstance(value, bool | int | float) or math.isnan(value) or not 0 <= value <= 1:
            raise DataError(where, f"the function {self.name} gave {value!r}, not true, false or a number in [0, 1]")
        return Score({"passed": float(value)}, None if value == 1 else "not_passed")


def source_file(name: str) -> list[Path]:
    """The file with the function's code, so that its content counts when sqtool asks what has changed."""
    entry = _entry(name)
    try:
        spec = None if entry is None else find_spec(entry.module)
    except ImportError:
        return []
    path = None if spec is None or spec.origin is None else Path(spec.origin)
    return [path] if path is not None and path.is_file() else []
