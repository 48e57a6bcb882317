"""Hostile inputs for sqtool's readers, drawn by hypothesis, and what the readers made of them.

`recipes`, `records`, `headers`, `answers`, `rollouts` and `releases` each have a strategy `cases()` and a function that
puts one case to the readers and returns an `Ending`. benchmarks/reliability/fuzz.py counts many of them,
tests/security a few.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqtool.errors import RecipeError, SqtoolError

ACCEPTED = "accepted"


@dataclass(frozen=True)
class Ending:
    """How one case ended. `fault` is empty when it ended as it must: accepted, or one error that says where and what to
    do; otherwise it says what was wrong with the error."""

    outcome: str
    fault: str = ""


def refusal(error: SqtoolError, where: str) -> Ending:
    """The ending of a case that was refused. A recipe's problems must each have a line, and every error a remedy; the
    one problem that has no line is the size of the file."""
    if isinstance(error, RecipeError):
        for problem in error.problems:
            if not problem.line and "larger than" not in problem.message:
                return Ending(f"{where}: refused", f"no line: {problem.field}: {problem.message}")
    if not error.message.strip():
        return Ending(f"{where}: refused", f"{type(error).__name__} without a message")
    if not error.remedy.strip():
        return Ending(f"{where}: refused", f"no remedy: {type(error).__name__}: {error.message}")
    return Ending(f"{where}: refused ({type(error).__name__}, exit {error.exit_code})")


def escaped(error: BaseException, where: str) -> Ending:
    """The ending of a case that would have been a traceback."""
    import traceback

    last = traceback.extract_tb(error.__traceback__)[-1]
    return Ending(f"{where}: traceback", f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})")
