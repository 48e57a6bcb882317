"""Code of others that a recipe would have run: what it is, where the recipe asks for it, and what that means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sqtool.errors import Problem, UsageError

if TYPE_CHECKING:
    from evals.harness.spec import LmEvalSpec
    from evals.spec import EngineSpec
    from sqtool.recipe import LoadedRecipe

REMEDY = "read that code; if you trust it, add --trust-remote-code to the command"


class Asked(NamedTuple):
    """`what` is its line in the manifest, `place` the key of the recipe, `message` says what would run."""

    what: str
    place: tuple[str | int, ...]
    message: str


def foreign_code(loaded: LoadedRecipe) -> list[tuple[str, Problem]]:
    """Everything in a recipe that would run code of others (what it is, and the problem that says so)."""
    recipe, found = loaded.recipe, []
    if recipe.model.trust_remote_code:
        found.append(
            Asked("the model's", ("model", "trust_remote_code"), "asks to run Python code that comes with the model")
        )
    bases = (loaded.root, loaded.path.resolve().parent)
    found += asked_by(recipe.engine, recipe.evaluate.lm_eval, loaded.root, bases)
    return [(asked.what, loaded.problem(asked.place, asked.message, REMEDY)) for asked in found]


def asked_by(engine: EngineSpec, harness: LmEvalSpec | None, root: Path, bases: Sequence[Path]) -> list[Asked]:
    """What these two sections ask for; files of tasks are relative to one of `bases`."""
    from evals.engine_env import outside_env
    from evals.harness.code import tagged_files
    from evals.spec import code_flags

    found = []
    elsewhere = outside_env(engine, root)
    if elsewhere is not None:
        message = f"{elsewhere} is no folder of this project, and its bin/vllm would be run"
        found.append(Asked(f"the vLLM in {elsewhere}", ("engine", "env"), message))
    found += [
        Asked(f"vllm serve {flag}", ("engine", "extra_args"), f"{flag} can run code in the server")
        for flag in code_flags(engine.extra_args)
    ]
    if harness is not None:
        place = ("evaluate", "lm_eval")
        if harness.confirm_run_unsafe_code:
            message = "asks to run the code that the model answers"
            found.append(Asked("the model's answers", (*place, "confirm_run_unsafe_code"), message))
        found += [
            Asked(f"lm-eval task {path.name}", place, f"{path} names Python functions (!function)")
            for path in tagged_files(harness, bases)
        ]
    return found


def refuse_untrusted(found: Sequence[Asked], what: str) -> None:
    """`UsageError` for code of others in something that is no recipe file (a run's record of one)."""
    if found:
        first = found[0]
        raise UsageError(
            f"{what}: {'.'.join(str(part) for part in first.place)}: {first.message}",
            remedy=REMEDY[:1].upper() + REMEDY[1:] + ".",
        )
