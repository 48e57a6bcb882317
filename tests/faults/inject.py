"""`python -m tests.faults.inject PLAN WORD ...` is `sqtool WORD ...`, failing where the plan (JSON) says.

{"kill": N}              kill -9 of itself at its N-th call that changes the disk's names or makes them durable
{"errno": "ENOSPC", "at": N, "times": M}     the N-th such call and the M - 1 after it fail with this error
{"calls": FILE}          nothing fails; writes one line a call, `function path`, so that N can be chosen
{"clock": SECONDS, "at": N}                  the clock of day jumps by so much at the N-th call
{"broken": NAME}         sqtool with a defect on purpose: the harness has to notice it
"""

from __future__ import annotations

import datetime
import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

CALLS = ("rename", "replace", "fsync", "mkdir", "symlink", "unlink", "rmdir")


def main() -> None:
    """The command."""
    from sqtool.cli import main as run

    apply(json.loads(sys.argv[1]))
    run(sys.argv[2:])


def apply(plan: dict[str, Any]) -> None:
    """Make this process one that fails so."""
    if "clock" in plan:
        _clock(plan)
    elif "broken" in plan:
        BROKEN[plan["broken"]]()
    else:
        _calls(plan)


def _calls(plan: dict[str, Any]) -> None:
    count = 0
    log = Path(plan["calls"]).open("a") if "calls" in plan else None  # noqa: SIM115 - until the end

    def wrapped(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if log is not None:
                log.write(f"{name} {args[0] if not isinstance(args[0], int) else _name(args[0])}\n")
                log.flush()
            if count == plan.get("kill"):
                os.kill(os.getpid(), signal.SIGKILL)
            if "errno" in plan and 0 <= count - plan["at"] < plan.get("times", 1) and name not in ("unlink", "rmdir"):
                number = getattr(errno, plan["errno"])
                named = () if isinstance(args[0], int) else (str(args[0]),)
                raise OSError(number, os.strerror(number), *named)
            return function(*args, **kwargs)

        return call

    for name in CALLS:
        setattr(os, name, wrapped(name, getattr(os, name)))


def _name(descriptor: int) -> str:
    try:
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())
    except OSError:
        return "?"


def _clock(plan: dict[str, Any]) -> None:
    """Another time of day from the N-th call on, for `time.time` and `datetime.now`; the monotonic clock goes on."""
    count, offset, real = 0, 0.0, time.time

    class Jumped(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:  # type: ignore[override]
            return super().now(tz) + datetime.timedelta(seconds=offset)

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count, offset
            count += 1
            if count == plan["at"]:
                offset = plan["clock"]
            return function(*args, **kwargs)

        return call

    time.time = lambda: real() + offset
    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    for module in ("sqtool.pipeline.run", "sqtool.release.publish", "sqtool.runfolder"):
        vars(import_module(module))["datetime"] = Jumped


def _result_first() -> None:
    """result.json is written before the folder is whole, and in its final place."""
    import shutil

    from sqtool import files, runfolder

    def commit(folder: Path, result: dict[str, Any]) -> None:
        building = folder.with_name(folder.name + runfolder.BUILDING)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        files.write_json(folder / runfolder.RESULT, result)
        if result["stage"] == os.environ.get("FAULTS_BROKEN_AT"):
            os.kill(os.getpid(), signal.SIGKILL)
        shutil.copytree(building, folder, dirs_exist_ok=True)
        shutil.rmtree(building)

    vars(import_module("sqtool.pipeline.run"))["commit"] = commit


def _no_guard() -> None:
    """Servers that nobody ends."""
    from evals import server

    vars(server)["_GUARD"] = Path(__file__).parent / "double" / "no_guard.py"


def _blind_gate() -> None:
    """A gate whose refusal stops nothing, and a release that asks for no verdict."""
    from sqtool.gate.verdict import Verdict
    from sqtool.release import publish
    from sqtool.stages import gate

    vars(gate)["check"] = lambda _spec, _summary: None
    vars(publish)["read_accepted"] = lambda _path, text, **_: Verdict.from_json(text)


def _torn_records() -> None:
    """Records that lose their last line, and nobody notices."""
    from evals import records, run

    def write(path: Path, rows: Any) -> None:
        records.write_records(path, list(rows)[:-1])

    vars(run)["write_records"] = write


BROKEN: dict[str, Callable[[], None]] = {
    "result_first": _result_first,
    "no_guard": _no_guard,
    "blind_gate": _blind_gate,
    "torn_records": _torn_records,
}


if __name__ == "__main__":
    main()
