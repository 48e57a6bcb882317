"""Every error that sqtool raises on purpose, each with the exit code that CI sees.

    SqtoolError                     (exit 4 unless a subclass says otherwise)
    |- UsageError            exit 2  the command line or the call is wrong
    |  `- RecipeError        exit 2  the recipe is wrong; carries every problem found, each with its line
    |- DataError             exit 2  a data file is wrong (file, line, field, what was expected)
    |- RegressedError        exit 1  the gate showed a regression
    |- CoverageError         exit 1  calibration does not cover what the recipe asks for
    |- InconclusiveError     exit 3  the gate could not decide, and the recipe refuses then
    |- InfrastructureError   exit 4  an engine died, memory or disk ran out, a tool is missing
    |  `- EngineError        exit 4  a vLLM server did not start, died or answered garbage
    `- CancelledError        exit 130  the user stopped the run

An error message is one sentence that says what is wrong; `remedy` is one that says what to do about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from sqtool.hygiene import redact

EXIT_RELEASED = 0
EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_INCONCLUSIVE = 3
EXIT_INFRASTRUCTURE = 4
EXIT_CANCELLED = 130


class SqtoolError(Exception):
    """Base class. `exit_code` is what the process exits with; `remedy` may be empty."""

    exit_code = EXIT_INFRASTRUCTURE

    def __init__(self, message: str, *, remedy: str = "") -> None:
        # A library's message may quote the token or the signed address that it was called with.
        self.message = redact(message)
        self.remedy = redact(remedy)
        super().__init__(self.message)


class UsageError(SqtoolError):
    """The command line, or a call of the library, asks for something that cannot be."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a recipe.

    `field` is the dotted path (`quantize.methods.0.awq.group_size`), `line` is 1-based or 0 when unknown.
    """

    field: str
    line: int
    message: str
    hint: str = ""


class RecipeError(UsageError):
    """A recipe that cannot be used; lists every problem at once."""

    def __init__(self, path: Path | str, problems: Sequence[Problem]) -> None:
        self.path = str(path)
        self.problems = tuple(replace(p, message=redact(p.message), hint=redact(p.hint)) for p in problems)
        lines = []
        for p in self.problems:
            where = f"{self.path}:{p.line}" if p.line else self.path
            lines.append(f"{where}: {p.field}: {p.message}" + (f" ({p.hint})" if p.hint else ""))
        super().__init__("\n".join(lines), remedy="`sqtool schema` prints every key that a recipe may have.")


class DataError(UsageError):
    """A data file is wrong. `line` is 1-based, 0 when the whole file is meant."""

    def __init__(self, path: Path | str, message: str, *, line: int = 0, field: str = "", remedy: str = "") -> None:
        self.path, self.line, self.field = str(path), line, field
        where = f"{path}:{line}" if line else str(path)
        remedy = remedy or f"Correct {'that line' if line else 'or replace that file'} and run the command again."
        super().__init__(f"{where}: {field + ': ' if field else ''}{message}", remedy=remedy)


class RegressedError(SqtoolError):
    """The gate refused the candidate."""

    exit_code = EXIT_REFUSED


class CoverageError(SqtoolError):
    """The calibration set does not cover what the recipe asks for."""

    exit_code = EXIT_REFUSED


class InconclusiveError(SqtoolError):
    """The items measured cannot decide, and the recipe says `inconclusive: refuse`."""

    exit_code = EXIT_INCONCLUSIVE


class InfrastructureError(SqtoolError):
    """Something around the measurement failed: no verdict about the candidate follows from it."""


class EngineError(InfrastructureError):
    """A vLLM server did not start, died, hung or answered what it should not."""


class CancelledError(SqtoolError):
    """The user stopped the run; the stage in progress was discarded, finished stages stay."""

    exit_code = EXIT_CANCELLED


def did_you_mean(word: str, choices: Sequence[str]) -> str:
    """`did you mean 'x'?` for the nearest choice, or the list of choices when none is near."""
    near = get_close_matches(word, choices, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return "expected one of: " + ", ".join(sorted(choices)) if choices else ""
