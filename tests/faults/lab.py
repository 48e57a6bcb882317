"""Undisturbed runs to compare with, and one try of one fault: disturb, look, run again, compare."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults import checks
from tests.faults.checks import EXIT_CODES, Snapshot
from tests.faults.process import CHECKOUT, GONE_WITHIN, Sqtool
from tests.faults.project import Project, make_project
from tests.faults.zygote import Zygote

KILLED = -9


@dataclass(frozen=True)
class Case:
    """A recipe, and how a run of it ends when nothing disturbs it."""

    name: str
    words: tuple[str, ...]
    outcome: str
    code: int


CASES = {
    case.name: case
    for case in (
        Case("good", ("quantize", "good.yaml"), "released", 0),
        Case("lean", ("quantize", "lean.yaml"), "released", 0),
        Case("refused", ("quantize", "refused.yaml"), "refused", 1),
        Case("worker", ("quantize", "worker.yaml", "--until", "quantize"), "done", 0),
    )
}


MEASURED = {"good": "measured", "lean": "lean"}
"""Names of the states in which a recipe's candidate is measured."""


def _silent(_: str) -> None:
    pass


@dataclass
class Row:
    """One line of the table: a fault, where it struck, and how often that was survived."""

    fault: str
    where: str
    tries: int = 0
    survived: int = 0
    kills: int = 0
    codes: Counter[int | None] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    not_tried: str = ""

    def count(self, problems: list[str], label: str) -> None:
        """One more try."""
        self.tries += 1
        self.survived += not problems
        self.problems += [f"{label}: {problem}" for problem in problems]


@dataclass
class Try:
    """One try, as it goes on."""

    lab: Lab
    row: Row
    case: Case
    problems: list[str] = field(default_factory=list)

    @contextmanager
    def disturbed(self, *more: str, allowed: tuple[int, ...] = EXIT_CODES, **settings: Any) -> Iterator[Sqtool]:
        """A run in which something goes wrong; afterwards everything is looked at that must hold at once."""
        with Sqtool(self.lab.project, *self.case.words, *more, **{"zygote": self.lab.zygote, **settings}) as run:
            yield run
            self.ended(run, allowed)

    def ended(self, run: Sqtool, allowed: tuple[int, ...]) -> None:
        """What must hold when a run has ended, however it did."""
        code = run.end()
        self.row.codes[code] += 1
        self.row.kills += code == KILLED
        self.problems += checks.screen_problems(code, run.said, allowed)
        self.problems += [f"outlived the run: {left}" for left in run.leftovers(self.lab.gone_within)]
        self.look()

    def look(self) -> None:
        """Nothing half made counts as finished, and nothing is released that did not pass."""
        project, name = self.lab.project, self.case.name
        now = checks.snapshot(project, name)
        self.problems += checks.differences(now, self.lab.references[name], whole=False)
        self.problems += checks.release_problems(project, name)

    def again(self) -> None:
        """The same command once more, undisturbed, has to end as if nothing had ever happened."""
        project, case = self.lab.project, self.case
        with Sqtool(project, *case.words, zygote=self.lab.zygote) as run:
            code = run.end()
            self.problems += [f"again: {p}" for p in checks.screen_problems(code, run.said, (case.code,))]
            self.problems += [f"again: outlived the run: {left}" for left in run.leftovers()]
            if code != case.code:
                self.problems.append(f"again: it said {run.said[-600:]}")
        now = checks.snapshot(project, case.name)
        self.problems += [f"again: {p}" for p in checks.differences(now, self.lab.references[case.name], whole=True)]
        self.problems += [f"again: {p}" for p in checks.release_problems(project, case.name)]
        self.problems += [f"again: {p}" for p in checks.litter(project, case.name)]
        self.problems += [f"again: {p}" for p in checks.state_problems(project, case.name, case.outcome, case.code)]


@dataclass
class Lab:
    """A project, what undisturbed runs of it give, and states to start from.

    `fresh`: nothing has run. `shared`: another run left the baseline and its control in the cache. `measured`: stopped
    behind `evaluate`, `lean`: so with the recipe without speculation. `done`: released. `packed`: with the other
    quantizer, stopped behind `calibrate`.
    """

    project: Project
    references: dict[str, Snapshot] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    """How many lines an undisturbed run says from each state: the moments by which tries are placed, whatever else the
    machine does."""
    told: Callable[[str], None] = _silent
    zygote: Zygote | None = None
    """Makes runs start at once; without it each one is a `python -m sqtool`."""
    gone_within: float = GONE_WITHIN
    """Seconds that what a run started has to end after it."""

    @classmethod
    def make(cls, place: Path, *, names: Sequence[str] = tuple(CASES), told: Callable[[str], None] = _silent) -> Lab:
        """Make the project in `place` and run what is to be compared with; AssertionError when that does not run."""
        lab = cls(make_project(place), told=told, zygote=Zygote(CHECKOUT))
        project = lab.project
        first = names[0]
        lab.whole(first, "fresh")
        project.keep("done")
        for folder in (project.run(first), project.releases):
            shutil.rmtree(folder, ignore_errors=True)
        project.keep("shared")
        for name in names:
            if name != "worker":
                lab.whole(name, "shared")
            if name in MEASURED:
                project.restore("shared")
                lab.go(name, "--until", "evaluate")
                project.keep(MEASURED[name])
        if "worker" in names:
            lab.whole("worker", "fresh")
            project.restore("fresh")
            lab.go("worker", words=("quantize", "worker.yaml", "--until", "calibrate"))
            project.keep("packed")
        for name, state in MEASURED.items():
            if name in names:
                lab.whole(name, state)
        return lab

    def copy(self, place: Path) -> Lab:
        """The same in another place, for rows at the same time."""
        shutil.copytree(self.project.root.parent, place, symlinks=True)
        project = Project(place / "project", place / "kept")
        return Lab(project, self.references, self.lines, self.told, Zygote(CHECKOUT))

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        if self.zygote is not None:
            self.zygote.close()

    def whole(self, name: str, state: str) -> Snapshot:
        """An undisturbed run from a state; the first one of a recipe is what all others are compared with."""
        self.project.restore(state)
        started = time.monotonic()
        self.lines[f"{name} {state}"] = self.go(name)
        seconds = time.monotonic() - started
        found = checks.snapshot(self.project, name)
        differ = checks.differences(found, self.references.setdefault(name, found), whole=True)
        assert not differ, f"undisturbed runs differ: {differ}"
        self.told(f"undisturbed: {name} from {state}, {seconds:.1f} s, {len(found)} folders")
        return found

    def go(self, name: str, *more: str, words: tuple[str, ...] | None = None) -> int:
        """Run without any fault, and count its lines; AssertionError when that does not end as it should."""
        case = CASES[name]
        with Sqtool(self.project, *(words or case.words), *more, zygote=self.zygote) as run:
            code = run.end()
            expected = case.code if not more and words is None else 0
            assert code == expected, f"an undisturbed run of {name} ended with {code}: {run.said[-2000:]}"
            assert not run.leftovers()
            return len(run.lines)

    @contextmanager
    def trying(self, row: Row, name: str, state: str, label: str) -> Iterator[Try]:
        """One try of a fault, from a state; afterwards the run is repeated and compared."""
        self.project.restore(state)
        one = Try(self, row, CASES[name])
        try:
            yield one
            one.again()
        except Exception as error:  # a try that breaks down has not survived
            one.problems.append(f"the try itself broke down: {type(error).__name__}: {error}")
        row.count(one.problems, label)
        self.told(f"{row.fault}, {row.where}: {label}: {'; '.join(one.problems) or 'survived'}")
