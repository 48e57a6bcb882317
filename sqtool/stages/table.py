"""The stage table: this screen is the architecture.

A row names the module that does the work (imported only when it runs), the recipe sections it sees (its own first),
the stages whose folders it needs, what else its result depends on (`reads`), and the packages whose source and the
distributions whose version shape it. All of that, and nothing else, goes into the stage's digest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqtool.errors import UsageError, did_you_mean


@dataclass(frozen=True)
class Stage:
    """One row."""

    name: str
    sections: tuple[str, ...]
    needs: tuple[str, ...]
    module: str
    code: tuple[str, ...]
    reads: tuple[str, ...] = ()
    """`model`, `draft` and `candidate`: the content of these folders. `candidate` counts only where the recipe names a
    finished checkpoint; one that the quantize stage makes is already covered by that stage's digest. `name` is the
    recipe's name."""
    tools: tuple[str, ...] = ()
    sees: tuple[str, ...] = ()
    """Further sections that only decide whether there is anything to do; no part of the digest."""
    shared: bool = False
    """Kept in artifacts/cache/<name>-<digest>/, where every recipe that needs the same one finds it."""


_HF = ("torch", "transformers")
_STATISTICS = ("numpy", "scipy")
_QUANTIZERS = (*_HF, "llmcompressor", "compressed-tensors")

STAGES: tuple[Stage, ...] = (
    Stage(
        "calibrate", ("calibrate",), (), "sqtool.stages.calibrate",
        code=("calibrate",), reads=("model",), tools=(*_HF, "datasketch"), sees=("quantize", "evaluate"),
    ),
    Stage(
        "quantize", ("quantize",), ("calibrate",), "sqtool.stages.quantize",
        code=("quantize",), reads=("model",), tools=_QUANTIZERS, sees=("calibrate", "engine"),
    ),
    Stage(
        "baseline", ("evaluate", "engine"), (), "sqtool.stages.baseline",
        code=("evals",), reads=("model",), tools=_HF, shared=True,
    ),
    Stage(
        "control", ("evaluate", "engine"), ("baseline",), "sqtool.stages.control",
        code=("evals",), reads=("model",), shared=True,
    ),
    Stage(
        "evaluate", ("evaluate", "engine"), ("quantize", "baseline"), "sqtool.stages.evaluate",
        code=("evals",), reads=("candidate",), tools=_HF, sees=("gate",),
    ),
    Stage(
        "gate", ("gate",), ("baseline", "control", "evaluate"), "sqtool.stages.gate",
        code=("sqtool.gate",), tools=_STATISTICS, sees=("evaluate",),
    ),
    Stage(
        "speculate", ("speculate", "engine", "evaluate"), ("quantize",), "sqtool.stages.speculate",
        code=("sqtool.speculate", "evals"), reads=("model", "draft", "candidate"),
    ),
    Stage(
        "approve", ("speculate",), ("baseline", "control", "evaluate", "gate", "speculate"), "sqtool.stages.approve",
        code=("sqtool.gate", "sqtool.advise", "sqtool.stages.speculation"), tools=_STATISTICS, sees=("gate",),
    ),
    Stage(
        "release", ("release",),
        ("calibrate", "quantize", "baseline", "control", "evaluate", "gate", "speculate", "approve"),
        "sqtool.stages.release", code=("sqtool.release",), reads=("candidate", "name"),
    ),
)  # fmt: skip


def stage_named(name: str, stages: Sequence[Stage] = STAGES) -> Stage:
    """The row called `name`; `UsageError` with a suggestion when there is none."""
    for stage in stages:
        if stage.name == name:
            return stage
    raise UsageError(f"no such stage: {name}", remedy=did_you_mean(name, [s.name for s in stages]))
