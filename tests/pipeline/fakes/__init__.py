"""Stages of a small pipeline with the shape of the real one, as contract doubles: they write files, nothing more."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from sqtool.pipeline import Job
from sqtool.spec import Spec
from sqtool.stages.table import Stage


class FakeSpec(Spec):
    """What a fake stage does."""

    text: str = ""
    data: str | None = None
    fail: str = ""
    outcome: str = "PASS"
    files: int = Field(default=1, ge=1)


def _stage(name: str, needs: tuple[str, ...] = (), *, module: str = "make", **other: object) -> Stage:
    path = f"tests.pipeline.fakes.{module}"
    return Stage(name, (name,), needs, path, code=("tests.pipeline.fakes",), **other)  # type: ignore[arg-type]


HOLD = "SQTOOL_FAKE_HOLD"
"""Environment variable: the stage of this name says "holding" and waits for a line on its standard input."""

STAGES = (
    _stage("calibrate"),
    _stage("quantize", ("calibrate",), reads=("model",)),
    _stage("baseline", reads=("model",), shared=True),
    _stage("evaluate", ("quantize", "baseline"), reads=("candidate",)),
    _stage("gate", ("baseline", "evaluate"), module="judge"),
    _stage("speculate", ("quantize",), reads=("draft", "candidate")),
    _stage("approve", ("gate", "speculate")),
    _stage("release", ("quantize", "gate", "speculate", "approve"), reads=("name",), module="publish"),
)


def make_job(root: Path, name: str = "run", **sections: FakeSpec) -> Job:
    """A job over the fake stages; `root/model` is made when it does not exist."""
    model = root / "model"
    if not model.is_dir():
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
        (model / "model.safetensors").write_bytes(b"weights")
    specs = {stage.name: sections.get(stage.name, FakeSpec()) for stage in STAGES}
    return Job(name=name, root=root, model=model, sections=specs, recipe_text="name: run\n", resolved={"name": name})


def calls(root: Path) -> list[str]:
    """Names of the stages that ran, in order."""
    path = root / "calls.log"
    return path.read_text().split() if path.is_file() else []
