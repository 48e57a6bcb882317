"""A command line over the fake stages: recipes are read by the real reader, stages are contract doubles."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import sqtool.pipeline
from sqtool.cli import call
from sqtool.pipeline import Job
from tests.pipeline.fakes import STAGES, FakeSpec, make_job


@dataclass
class Said:
    """What a command line did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Sqtool = Callable[..., Said]


@pytest.fixture
def sqtool_(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Sqtool:
    """Run `sqtool ARGS` in a project folder of its own."""
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> Said:
        capsys.readouterr()
        code = call([str(arg) for arg in args])
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return run


@pytest.fixture
def fake_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Job]:
    """`fake_job(gate=FakeSpec(...))`: every recipe becomes this job over the fake stages."""
    monkeypatch.setattr(sqtool.pipeline, "run", functools.partial(sqtool.pipeline.run, stages=STAGES))
    monkeypatch.setattr(sqtool.pipeline, "make_plan", functools.partial(sqtool.pipeline.make_plan, stages=STAGES))

    def make(**sections: FakeSpec) -> Job:
        job = make_job(tmp_path, "demo", **sections)
        monkeypatch.setattr("sqtool.cli.runs.load_job", lambda *_: job)
        return job

    return make
