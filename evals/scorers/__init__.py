"""Scorers: from an item and the answer to numbers in [0, 1] and the name of what went wrong.

A scorer is a strict model whose fields are its options. Adding one is one file and one line in `SCORERS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from evals.items import Item
from evals.unicode import whole_text
from sqtool.errors import UsageError, did_you_mean

SCORERS = {
    "choice": "evals.scorers.choice:Choice",
    "exact_match": "evals.scorers.exact_match:ExactMatch",
    "function": "evals.scorers.function:Function",
    "json_schema": "evals.scorers.json_schema:JsonSchema",
    "numeric": "evals.scorers.numeric:Numeric",
    "perplexity": "evals.scorers.perplexity:Perplexity",
    "regex": "evals.scorers.regex:Regex",
    "tool_calls": "evals.scorers.tool_calls:ToolCalls",
}


@dataclass(frozen=True)
class ToolCall:
    """A call as the server parsed it; `arguments` is the text as sent, which need not be JSON."""

    name: str
    arguments: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", whole_text(self.name))
        object.__setattr__(self, "arguments", whole_text(self.arguments))


@dataclass(frozen=True)
class Loglikelihood:
    """How probable a model finds one continuation of a prompt."""

    logprob: float
    """Sum of the natural log-probabilities of the continuation's tokens."""
    tokens: int
    """How many tokens it has."""
    greedy: bool
    """Whether every one of them was the most probable token at its place."""


@dataclass(frozen=True)
class Answer:
    """What the engine answered to one item. `finish_reason` is the server's: stop, length, tool_calls, ...

    `loglikelihoods` is filled, one for each continuation, for scorers that ask for them; the rest is then empty.
    """

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    loglikelihoods: tuple[Loglikelihood, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", whole_text(self.text))
        object.__setattr__(self, "finish_reason", whole_text(self.finish_reason))


@dataclass(frozen=True)
class Fault:
    """One wrong argument of a tool call; `wrong` is missing, unexpected, type or value."""

    tool: str
    argument: str
    wrong: str


@dataclass(frozen=True)
class Score:
    """`scores` has a metric only where it applies, each in [0, 1]. `failure` is None for a right answer, otherwise
    the layer at which it went wrong; `detail` says more for people, `faults` for programs. `totals` are numbers of
    any size that are summed over a task."""

    scores: Mapping[str, float]
    failure: str | None = None
    detail: str = field(default="")
    faults: tuple[Fault, ...] = ()
    totals: Mapping[str, float] = field(default_factory=dict)


class Scorer(Protocol):
    """What a scorer offers."""

    metrics: Any
    """Names of the metrics that it may give (a class variable, tuple of strings)."""
    failures: Any
    """Names of the failure layers that it may give (a class variable, tuple of strings)."""

    asks: Any
    """"generate" for an answer, "loglikelihood" for the probabilities of `continuations` (a class variable)."""

    def continuations(self, item: Item) -> tuple[str, ...]:
        """The texts whose log-likelihood after the item's prompt is asked for; empty for scorers that generate."""

    def check(self, item: Item) -> tuple[str, str] | None:
        """None, or (field, what is wrong) when the item lacks what this scorer needs."""

    def applies(self, item: Item) -> tuple[str, ...]:
        """The metrics that `score` gives for this item; they never depend on the answer, or nothing would pair."""

    def score(self, item: Item, answer: Answer) -> Score:
        """Pure: no files, no network, no randomness."""


def scorer_class(name: str) -> Any:
    """The strict model behind a scorer's name; `UsageError` for an unknown one."""
    target = SCORERS.get(name)
    if target is None:
        raise UsageError(f"no scorer {name!r}; {did_you_mean(name, list(SCORERS))}")
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


def make_scorer(name: str, options: Mapping[str, Any] | None = None) -> Scorer:
    """The scorer called `name` with its options; `UsageError` for an unknown name or option."""
    factory = scorer_class(name)
    try:
        scorer: Scorer = factory(**dict(options or {}))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(p) for p in first["loc"])
        if first["type"] == "extra_forbidden":
            raise UsageError(
                f"scorer {name}: unknown option {key!r}; {did_you_mean(key, list(factory.model_fields))}"
            ) from None
        message = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"scorer {name}: {f'option {key}: ' if key else ''}{message}") from None
    return scorer


def scorer_files(name: str, options: Mapping[str, Any]) -> list[Path]:
    """Files beside sqtool's own whose content decides how answers are scored: the code of a user's function."""
    if name != "function":
        return []
    from evals.scorers.function import source_file

    return source_file(str(options.get("name", "")))
