"""kill -9 of every part of a run, at every boundary and in between."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from tests.faults.lab import CASES, KILLED, Lab, Row
from tests.faults.process import Sqtool, kill

ENGINE_DIED = (4, 0)
"""A server that dies after its last answer stops nothing."""
BEHIND = 4
"""So many calls behind a rename belong to the boundary of a stage: making it durable, and result.json."""
STAGES = ("quantize", "baseline", "control", "evaluate", "gate", "speculate", "release")


def calls(lab: Lab, name: str, state: str) -> list[str]:
    """What an undisturbed run does to the disk, call by call."""
    log = lab.project.root.parent / "calls"
    log.unlink(missing_ok=True)
    lab.project.restore(state)
    with Sqtool(lab.project, *CASES[name].words, plan={"calls": str(log)}, zygote=lab.zygote) as run:
        run.end()
    return Path(log).read_text().splitlines()


def boundaries(listed: Sequence[str]) -> list[int]:
    """Calls (from 1) at the end of each stage: its folder gets its name, becomes durable, gets result.json."""
    found: set[int] = set()
    for at, call in enumerate(listed, 1):
        if call.startswith("rename "):
            found |= set(range(at, min(at + BEHIND, len(listed)) + 1))
    return sorted(found)


def at_calls(lab: Lab, name: str, state: str, moments: Sequence[int], what: str) -> Row:
    """sqtool kills itself at these calls, one try each."""
    row = Row("kill -9 of sqtool", f"{what}, {_from(name, state)}")
    for moment in moments:
        with (
            lab.trying(row, name, state, f"call {moment}") as one,
            one.disturbed(plan={"kill": moment}, allowed=(KILLED, one.case.code)),
        ):
            pass
    return row


def at_stages(lab: Lab, stages: Sequence[str] = STAGES) -> Row:
    """From outside, when a stage says that it starts or has ended."""
    row = Row("kill -9 of sqtool", "as each stage starts and ends")
    for stage in stages:
        state = "fresh" if stage in ("baseline", "control") else "shared"
        state = "measured" if stage in ("gate", "speculate", "release") else state
        for word in ("starting", "done in"):
            with lab.trying(row, "good", state, f"{stage} {word}") as one, one.disturbed(allowed=(KILLED, 0)) as run:
                assert run.until(f"{stage}: {word}"), run.said[-500:]
                kill(run.process.pid)
    return row


def at_random(lab: Lab, name: str, state: str, rng: random.Random, tries: int, kills: int = 1) -> Row:
    """From outside, at random moments; with several kills in a row, also in the middle of going on after one."""
    again = f", {kills} in a row" if kills > 1 else ""
    row = Row("kill -9 of sqtool", f"random moments{again}, {_from(name, state)}")
    for number in range(tries):
        with lab.trying(row, name, state, f"try {number}") as one:
            left = lab.lines[f"{name} {state}"]
            for _ in range(kills):
                with one.disturbed(allowed=(KILLED, one.case.code)) as run:
                    moment = rng.randint(1, left)
                    run.until_lines(moment)
                    if run.after(rng.uniform(0, 0.2)):
                        kill(run.process.pid)
                    left = max(4, left - moment)
    return row


SERVERS = {"fresh": 2, "shared": 1, "measured": 4}
"""How many servers come in a run from each state at least."""


def of_servers(
    lab: Lab,
    rng: random.Random,
    tries: int,
    stubborn: bool = False,
    name: str = "good",
    states: Sequence[str] = tuple(SERVERS),
) -> Row:
    """The n-th server of a run, while it starts or answers."""
    row = Row("kill -9 of vLLM", "while it starts or answers" + (", with a worker that ignores SIGTERM" * stubborn))
    env = {"FAULTS_PACE": "0.02"} | ({"FAULTS_STUBBORN": "1"} if stubborn else {})
    for number in range(tries):
        state = states[number % len(states)]
        with (
            lab.trying(row, name, state, f"{state} {number}") as one,
            one.disturbed(allowed=ENGINE_DIED, env=env) as run,
        ):
            seen: list[int] = []
            for _ in range(rng.randint(1, SERVERS[state])):
                pid = run.wait_for("server", unlike=seen)
                assert pid is not None, "no server came"
                seen.append(pid)
            run.after(rng.uniform(0, 0.5))
            row.kills += kill(seen[-1])
    return row


def of_part(lab: Lab, role: str, fault: str, rng: random.Random, tries: int) -> Row:
    """The engine's own worker, or the guard of a server."""
    row = Row(fault, "while it answers")
    for number in range(tries):
        state = ("shared", "measured")[number % 2]
        with (
            lab.trying(row, "good", state, f"{state} {number}") as one,
            one.disturbed(allowed=ENGINE_DIED, env={"FAULTS_PACE": "0.02"}) as run,
        ):
            pid = run.wait_for(role)
            assert pid is not None, f"no {role} came"
            run.after(rng.uniform(0, 0.5))
            row.kills += kill(pid)
    return row


def of_worker(lab: Lab, rng: random.Random, tries: int, *, whom: str) -> Row:
    """The process of another quantizer, or sqtool while that works."""
    fault = "kill -9 of a quantizer's worker" if whom == "worker" else "kill -9 of sqtool"
    row = Row(fault, "while it works" if whom == "worker" else "while a quantizer's worker works")
    for number in range(tries):
        allowed = (4, 0) if whom == "worker" else (KILLED, 0)
        with (
            lab.trying(row, "worker", "packed", f"try {number}") as one,
            one.disturbed(allowed=allowed, env={"FAULTS_WORK": "0.3"}) as run,
        ):
            worker = run.wait_for("worker")
            assert worker is not None, "no worker came"
            run.after(rng.uniform(0, 0.4))
            row.kills += kill(worker) if whom == "worker" else 0
            if whom == "sqtool":
                kill(run.process.pid)
    return row


def _from(name: str, state: str) -> str:
    of = "a recipe that is refused, " if name == "refused" else ""
    begun = {"fresh": "the whole run", "shared": "from quantize on", "packed": "quantize"}
    return of + begun.get(state, "from the gate on")
