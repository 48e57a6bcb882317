"""Running a plan: what is cached is skipped, what runs is built aside and put in place whole, and the gate decides.

The run folder's state (run.json) and report.md are written whatever happens, also on refusal, failure and Ctrl-C.
After kill -9 the next run removes what was half built and goes on behind the last finished stage.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import sqtool
from sqtool.errors import (
    EXIT_RELEASED,
    CancelledError,
    CoverageError,
    InconclusiveError,
    RegressedError,
    SqtoolError,
    UsageError,
)
from sqtool.files import remove_temporaries, write_json, write_text
from sqtool.hygiene import LogFormatter, redact
from sqtool.pipeline import seal
from sqtool.pipeline.ending import as_sqtool_error, cannot_write, describe
from sqtool.pipeline.job import Job
from sqtool.pipeline.plan import Plan, Step, hook, make_plan
from sqtool.pipeline.timing import Timings
from sqtool.progress import SILENT, Progress
from sqtool.runfolder import (
    BUILDING,
    CACHE,
    FAILED,
    RunFolder,
    begin,
    commit,
    discard,
    listed,
    locked,
    read_result,
    remove_stage,
    sweep,
)
from sqtool.stages.contract import StageResult
from sqtool.stages.table import STAGES, Stage

FORMAT = 1
SOMEBODY_WRITES_SECONDS = 3600.0
"""A temporary file in the cache, which other runs write to as well, is nobody's after this time."""
StageState = Literal["cached", "done", "skipped", "failed", "cancelled", "running", "waiting", "not reached"]
OutcomeName = Literal["released", "passed", "done", "refused", "inconclusive", "failed", "cancelled"]
log = logging.getLogger("sqtool")


@dataclass
class StageRecord:
    """What run.json says about one stage."""

    name: str
    state: StageState
    why: str
    digest: str
    folder: str
    seconds: float | None = None
    error: str = ""


@dataclass
class RunOutcome:
    """How a run ended. `error` is what stopped it, `problems` everything that the plan found wrong."""

    name: str
    folder: RunFolder
    outcome: OutcomeName
    exit_code: int
    stages: list[StageRecord]
    seconds: float
    error: SqtoolError | None = None
    problems: tuple[SqtoolError, ...] = ()
    results: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """result.json of every finished stage, by name."""
    recorded: bool = True
    """Whether run.json says this; it may still say how an earlier run ended where nothing could be written."""


def run(
    job: Job,
    *,
    stages: Sequence[Stage] = STAGES,
    until: str | None = None,
    force: Collection[str] = (),
    wait: bool = False,
    progress: Progress = SILENT,
) -> RunOutcome:
    """Run the stages up to and with `until`; see the outcome for how it ended.

    Raises only when nothing could be begun: `InfrastructureError` when another process holds the run folder (with
    `wait` this waits for it), `UsageError` for an unknown stage name.
    """
    folder = RunFolder.of(job.root, job.name)
    lock = folder.path / "run.lock"
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        with locked(lock, what=f"run {job.name}", wait=wait, waiting=progress.note), _logging_to(folder.log):
            return _Runner(job, folder, stages, until, frozenset(force), progress).run()
    except OSError as error:  # of the folder, its lock or its log: what happens in the run itself is in the outcome
        raise cannot_write(folder.path, error) from None


@contextlib.contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    if path.is_symlink():  # of a run folder that came from elsewhere; what it leads to is not ours to write to
        raise OSError(errno.ELOOP, "is a link", str(path))
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(LogFormatter())
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        handler.close()


class _Runner:
    def __init__(
        self,
        job: Job,
        folder: RunFolder,
        stages: Sequence[Stage],
        until: str | None,
        force: frozenset[str],
        progress: Progress,
    ) -> None:
        self.job, self.folder, self.stages, self.until, self.force = job, folder, stages, until, force
        self.progress = progress
        self.started = datetime.now(UTC)
        self.clock = time.monotonic()
        self.records: dict[str, StageRecord] = {s.name: StageRecord(s.name, "not reached", "", "", "") for s in stages}
        self.results: dict[str, Mapping[str, Any]] = {}
        self.timings = Timings(job.root / CACHE)

    def run(self) -> RunOutcome:
        left = sweep(self.folder.path)
        remove_temporaries(self.job.root / CACHE, older_than=SOMEBODY_WRITES_SECONDS)
        if left:
            self.progress.note(f"removed what an interrupted run left: {', '.join(left)}")
        error: SqtoolError | None = None
        problems: tuple[SqtoolError, ...] = ()
        try:
            self.write_recipe()
            plan = make_plan(self.job, stages=self.stages, until=self.until, force=self.force, progress=self.progress)
            problems = plan.problems
            self.take_plan(plan)
            if problems:
                raise problems[0]
            for step in plan.steps:
                self.one(step)
        except (Exception, SystemExit, KeyboardInterrupt) as caught:  # every end is recorded
            error = as_sqtool_error(caught)
            if not isinstance(caught, SqtoolError | KeyboardInterrupt):
                log.exception("unexpected error")
            elif isinstance(caught, SqtoolError) and not isinstance(caught, RegressedError | InconclusiveError):
                log.info("stopped", exc_info=caught)
        return self.finish(error, problems)

    def write_recipe(self) -> None:
        if self.job.recipe_text:
            write_text(self.folder.recipe_text, self.job.recipe_text)
        write_json(self.folder.recipe_json, dict(self.job.resolved))

    def take_plan(self, plan: Plan) -> None:
        states: dict[str, StageState] = {"cached": "cached", "run": "not reached", "skip": "skipped"}
        for step in plan.steps:
            record = self.records[step.stage.name]
            record.state, record.why, record.digest = states[step.action], step.why, step.digest
            record.folder = self.job.shown(step.folder) if step.action != "skip" else ""
            if step.result is not None:
                record.seconds = step.result.get("seconds")
            for warning in step.estimate.warnings:
                self.progress.note(f"warning: {warning}")
        self.write_state("running", None, None)

    def one(self, step: Step) -> None:
        name = step.stage.name
        if step.action == "skip":
            self.progress.note(f"{name}: skipped ({step.why})")
            return
        if step.action == "cached":
            assert step.result is not None
            self.results[name] = step.result
            self.progress.note(f"{name}: reused")
        elif step.stage.shared:
            self.build_shared(step)
        else:
            self.build(step)
        check = hook(step.stage, "check")
        if check is not None:
            check(step.spec, self.results[name]["summary"])

    def build_shared(self, step: Step) -> None:
        """Several runs may need the same shared folder: one makes it, the others wait and find it made."""
        lock = step.folder.with_name(step.folder.name + ".lock")
        record = self.records[step.stage.name]
        what = f"the shared {step.stage.name} {step.folder.name}"
        record.state = "waiting"
        with locked(lock, what=what, wait=True, waiting=self.progress.note):
            made = read_result(step.folder)
            if step.why != "forced" and made is not None and self.serves(step, made):
                seal.check(step.folder, made, seal.key_of(), self.progress)
                self.results[step.stage.name] = made
                record.state, record.why, record.seconds = "cached", "made by another run", made.get("seconds")
                self.progress.note(f"{step.stage.name}: reused")
                return
            if step.folder.with_name(step.folder.name + BUILDING).is_dir():  # left by a killed run
                discard(step.folder, keep=self.kept(step))
            self.build(step)

    def serves(self, step: Step, made: Mapping[str, Any]) -> bool:
        """Whether what another run made is what this one would make: of the same digest, and from the same builds."""
        return made.get("digest") == step.digest and made.get("built_from") == self.built_from(step)

    def built_from(self, step: Step) -> dict[str, str]:
        """The builds of the stages that this one needs."""
        return {need: self.results[need]["build"] for need in step.inputs.folders}

    def kept(self, step: Step) -> Path:
        """Where logs and parts of a failed attempt go."""
        if step.stage.shared:
            return step.folder.parent / FAILED / step.folder.name
        return self.folder.failed(step.stage.name)

    def build(self, step: Step) -> None:
        name, record = step.stage.name, self.records[step.stage.name]
        record.state = "running"
        self.write_state("running", None, None)
        self.progress.note(f"{name}: starting ({step.why})")
        function: Callable[..., StageResult] | None = hook(step.stage, "run")
        assert function is not None, f"{step.stage.module} has no run()"
        began, started = time.monotonic(), datetime.now(UTC)
        out, kept = begin(step.folder), self.kept(step)
        try:
            inputs = replace(step.inputs, earlier=kept if kept.is_dir() else None)
            result = function(step.spec, inputs, out)
            seconds = time.monotonic() - began
            self.remove_dependents(name)
            value: dict[str, Any] = {
                "format": FORMAT,
                "stage": name,
                "digest": step.digest,
                "build": uuid.uuid4().hex,
                "built_from": self.built_from(step),
                "started": started.isoformat(timespec="seconds"),
                "seconds": round(seconds, 3),
                "sqtool": sqtool.__version__,
                "summary": result.summary,
                "parts": dict(step.parts),
            }
            value = seal.sealed(out, value, seal.key_of()) if step.stage.shared else listed(out, value)
            commit(step.folder, value)
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            record.state = "cancelled" if isinstance(error, KeyboardInterrupt | CancelledError) else "failed"
            record.seconds = round(time.monotonic() - began, 3)
            record.error = redact(str(error)) or type(error).__name__
            discard(step.folder, keep=kept)
            raise
        self.results[name] = value
        record.state, record.seconds = "done", value["seconds"]
        if kept.is_dir():
            remove_stage(kept)
        self.timings.add(name, step.estimate.work, seconds)
        self.write_state("running", None, None)
        self.progress.note(f"{name}: done in {seconds:.1f} s")

    def remove_dependents(self, name: str) -> None:
        """What was made from an older folder of this stage is void, and must not stand beside the new one."""
        void = {name}
        for stage in self.stages:
            if void & set(stage.needs):
                void.add(stage.name)
                if not stage.shared:
                    remove_stage(self.folder.stage(stage.name))

    def finish(self, error: SqtoolError | None, problems: tuple[SqtoolError, ...]) -> RunOutcome:
        outcome, code = self.outcome(error)
        seconds = time.monotonic() - self.clock
        for record in self.records.values():
            if record.state in ("waiting", "running"):
                record.state = "cancelled" if outcome == "cancelled" else "failed"
        recorded = False
        try:
            self.write_state(outcome, code, error, seconds, problems)
            recorded = True
            self.write_report()
        except OSError as failed:
            self.progress.note(f"the run's state could not be written: {failed}")
            if code == EXIT_RELEASED:
                error = cannot_write(self.folder.path, failed)
                outcome, code = "failed", error.exit_code
        records = list(self.records.values())
        return RunOutcome(
            self.job.name, self.folder, outcome, code, records, seconds, error, problems, self.results, recorded
        )

    def outcome(self, error: SqtoolError | None) -> tuple[OutcomeName, int]:
        if error is None:
            finished = {n for n, r in self.records.items() if r.state in ("done", "cached")}
            if "release" in finished:
                return "released", EXIT_RELEASED
            return ("passed" if "gate" in finished else "done"), EXIT_RELEASED
        if isinstance(error, RegressedError | CoverageError):
            return "refused", error.exit_code
        if isinstance(error, InconclusiveError):
            return "inconclusive", error.exit_code
        if isinstance(error, CancelledError):
            return "cancelled", error.exit_code
        return "failed", error.exit_code

    def write_state(
        self,
        outcome: str,
        code: int | None,
        error: SqtoolError | None,
        seconds: float | None = None,
        problems: tuple[SqtoolError, ...] = (),
    ) -> None:
        write_json(
            self.folder.run_json,
            {
                "format": FORMAT,
                "name": self.job.name,
                "root": str(self.job.root),
                "recipe": self.job.shown(self.job.recipe_path.resolve()) if self.job.recipe_path else None,
                "model": self.job.shown(self.job.model),
                "draft": self.job.shown(self.job.draft) if self.job.draft else None,
                "until": self.until,
                "sqtool": sqtool.__version__,
                "started": self.started.isoformat(timespec="seconds"),
                "seconds": None if seconds is None else round(seconds, 3),
                "outcome": outcome,
                "exit_code": code,
                "error": None if error is None else describe(error),
                "problems": [describe(p) for p in problems],
                "stages": [vars(record) for record in self.records.values()],
            },
        )

    def write_report(self) -> None:
        from sqtool.report import write_report

        try:
            write_report(self.folder.path)
        except Exception as failed:  # a report that cannot be drawn must not change the verdict
            log.exception("report.md could not be written")
            self.progress.note(f"report.md could not be written: {failed}")


def with_sections(job: Job, **sections: Any) -> Job:
    """The job with some sections replaced."""
    unknown = set(sections) - set(job.sections)
    if unknown:
        raise UsageError(f"no such section: {', '.join(sorted(unknown))}")
    texts = {name: section.model_dump(mode="json") for name, section in sections.items()}
    return replace(job, sections={**job.sections, **sections}, resolved={**job.resolved, **texts})
