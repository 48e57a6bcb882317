"""Writes files that depend on its section and on what it needs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sqtool.errors import CoverageError, EngineError
from sqtool.stages.contract import Inputs, StageResult
from tests.pipeline.fakes import HOLD, FakeSpec


def run(spec: FakeSpec, inputs: Inputs, out: Path) -> StageResult:
    assert list(out.iterdir()) == [], "a stage begins with an empty folder"
    name = out.name.removesuffix(".tmp").partition("-")[0]
    with (inputs.root / "calls.log").open("a") as handle:
        handle.write(name + "\n")
    (out / "server.log").write_text("what the engine said\n")
    (out / "answers.part").write_text("answers so far")
    if inputs.earlier is not None and (inputs.earlier / "answers.part").is_file():
        inputs.progress.note(f"{name} goes on from what is there")
    before = "".join((inputs.folders[need] / "out-0.txt").read_text() for need in sorted(inputs.folders))
    for number in range(spec.files):
        (out / f"out-{number}.txt").write_text(f"{name}({spec.text}){before}")
        inputs.progress.note(f"{name} {number}")
    if os.environ.get(HOLD) == name:
        inputs.progress.note("holding")
        sys.stdin.readline()
    if spec.fail == "engine":
        raise EngineError("the engine died", remedy="Look at its log.")
    if spec.fail == "coverage":
        raise CoverageError("kinds below the minimum: lookup 1 of 8", remedy="Add a source.")
    if spec.fail == "bug":
        raise ZeroDivisionError("division by zero")
    if spec.fail == "exit":
        raise SystemExit(3)
    if spec.fail == "disk":
        raise OSError(28, "No space left on device", str(out / "x"))
    if spec.fail == "memory":
        raise MemoryError
    if spec.fail == "interrupt":
        raise KeyboardInterrupt
    (out / "answers.part").unlink()
    return StageResult({"text": spec.text})


def skip(spec: FakeSpec, inputs: Inputs) -> str:
    return "nothing to do" if spec.text == "skip" else ""


def data_files(spec: FakeSpec, inputs: Inputs) -> list[Path]:
    return [inputs.root / spec.data] if spec.data else []
