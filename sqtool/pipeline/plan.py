"""What a run would do, stage by stage, and why. Reads and hashes; starts nothing, writes only the digest memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from sqtool.errors import InfrastructureError, SqtoolError
from sqtool.pipeline import seal
from sqtool.pipeline.digest import FileDigests, code_digest, digest_of, tool_version, what_changed
from sqtool.pipeline.job import Job
from sqtool.pipeline.timing import Guess, Timings
from sqtool.progress import SILENT, Progress
from sqtool.runfolder import CACHE, RunFolder, damage, read_result
from sqtool.spec import Spec
from sqtool.stages.contract import Estimate, Inputs
from sqtool.stages.table import STAGES, Stage, stage_named

Action = Literal["cached", "run", "skip"]
DIGEST_CHARS = 12
DISK_MARGIN = 1.1
LARGE_BYTES = 2_000_000_000
"""Hashing more than this takes long enough to say so (unless it is remembered)."""
ALL = "all"


@dataclass(frozen=True)
class Step:
    """One stage of a plan. `digest` is empty and `folder` unused when the stage is skipped."""

    stage: Stage
    action: Action
    why: str
    spec: Spec
    inputs: Inputs
    folder: Path
    digest: str = ""
    parts: Mapping[str, Any] = field(default_factory=dict)
    estimate: Estimate = field(default_factory=Estimate)
    guess: Guess = field(default_factory=lambda: Guess(0.0, ""))
    result: Mapping[str, Any] | None = None
    """The finished result.json, where the stage is cached."""


@dataclass(frozen=True)
class Plan:
    """All steps in order, and what would stop them."""

    job: Job
    steps: tuple[Step, ...]
    problems: tuple[SqtoolError, ...]
    unread: tuple[Path, ...] = ()
    """Large files that were not hashed (`make_plan(hash_large=False)`); the digests of stages that depend on them are
    not those of a run."""

    @property
    def seconds(self) -> float | None:
        """Sum over stages that will run; None when one of them is unknown."""
        guesses = [step.guess.seconds for step in self.steps if step.action == "run"]
        return None if None in guesses else sum(g for g in guesses if g is not None)


def hook(stage: Stage, name: str) -> Callable[..., Any] | None:
    """The function called `name` of the stage's module, if it has one."""
    found = getattr(import_module(stage.module), name, None)
    return found if callable(found) else None


def make_plan(
    job: Job,
    *,
    stages: Sequence[Stage] = STAGES,
    until: str | None = None,
    force: Collection[str] = (),
    progress: Progress = SILENT,
    hash_large: bool = True,
) -> Plan:
    """Plan the stages up to and with `until`. `force` names stages to run even if they are cached (`all`: each one).

    Without `hash_large`, files of a size that takes long to hash are not read when no earlier run has read them.

    Problems that a stage's preflight finds are collected, not raised; a file that cannot be read is raised.
    """
    last = stage_named(until, stages).name if until is not None else stages[-1].name
    for name in force:
        if name != ALL:
            stage_named(name, stages)
    planner = _Planner(job, stages, frozenset(force), progress, None if hash_large else LARGE_BYTES)
    try:
        for stage in stages:
            planner.add(stage)
            if stage.name == last:
                break
    finally:
        planner.digests.save()
    return Plan(job, tuple(planner.steps.values()), tuple(planner.problems), tuple(sorted(planner.digests.unread)))


class _Planner:
    def __init__(
        self, job: Job, stages: Sequence[Stage], force: frozenset[str], progress: Progress, largest: int | None
    ) -> None:
        self.job, self.stages, self.force, self.progress = job, stages, force, progress
        self.run = RunFolder.of(job.root, job.name)
        self.cache = job.root / CACHE
        self.digests = FileDigests(self.cache / "file-digests.json", largest=largest)
        self.timings = Timings(self.cache)
        self.steps: dict[str, Step] = {}
        self.problems: list[SqtoolError] = []
        self._contents: dict[Path, str] = {}

    def add(self, stage: Stage) -> None:
        spec, inputs = self.job.sections[stage.sections[0]], self.inputs(stage)
        skip = hook(stage, "skip")
        reason = skip(spec, inputs) if skip is not None else ""
        if reason:
            self.steps[stage.name] = Step(stage, "skip", reason, spec, inputs, self.run.stage(stage.name))
            return
        try:
            parts = self.parts(stage, spec, inputs)
        except SqtoolError as error:
            self.problem(error)
            self.steps[stage.name] = Step(stage, "run", "cannot be planned", spec, inputs, self.run.stage(stage.name))
            return
        digest = digest_of(parts)
        shared = self.cache / f"{stage.name}-{digest[:DIGEST_CHARS]}"
        folder = shared if stage.shared else self.run.stage(stage.name)
        result = read_result(folder)
        why = self.why_run(stage, parts, digest, result, inputs)
        if stage.shared:
            try:
                key = seal.key_of()  # one that is too short would stop the run only when there is something to seal
                if not why and result is not None:
                    seal.check(folder, result, key, self.progress)
            except SqtoolError as error:
                self.problem(error)
        if not why:
            assert result is not None
            shown = self.details(stage, spec, inputs)
            self.steps[stage.name] = Step(
                stage, "cached", "same inputs as before", spec, inputs, folder, digest, parts, shown, result=result
            )
            return
        estimate = self.preflight(stage, spec, inputs)
        guess = self.timings.guess(stage.name, estimate)
        self.steps[stage.name] = Step(stage, "run", why, spec, inputs, folder, digest, parts, estimate, guess)

    def inputs(self, stage: Stage) -> Inputs:
        job = self.job
        folders = {
            name: self.steps[name].folder
            for name in stage.needs
            if name in self.steps and self.steps[name].action != "skip"
        }
        candidate = job.checkpoint
        if candidate is None and "quantize" in stage.needs:
            candidate = self.run.stage("quantize") / "checkpoint"
        return Inputs(
            model=job.model,
            draft=job.draft,
            seed=job.seed,
            folders=folders,
            trust_remote_code=job.trust_remote_code,
            progress=self.progress,
            root=job.root,
            candidate=candidate,
            sections={name: job.sections[name] for name in (*stage.sections[1:], *stage.sees)},
            recipe={
                "name": job.name,
                "text": job.recipe_text,
                "model": job.shown(job.model),
                "resolved": dict(job.resolved),
                "foreign_code": list(job.foreign_code),
            },
        )

    def parts(self, stage: Stage, spec: Spec, inputs: Inputs) -> dict[str, Any]:
        job = self.job
        content: dict[str, str] = {}
        for name, folder in (("model", job.model), ("draft", job.draft), ("candidate", job.checkpoint)):
            if name in stage.reads and folder is not None:
                content[name] = self.content(folder)
        data_files = hook(stage, "data_files")
        files: list[Path] = data_files(spec, inputs) if data_files is not None else []
        tools = {name: tool_version(name) for name in stage.tools}
        fingerprint = hook(stage, "fingerprint")
        if fingerprint is not None:
            tools |= fingerprint(spec, inputs)
        # The adapter decides what the library function gets, so its source counts as well.
        code = {name: code_digest(name) for name in (*stage.code, stage.module)}
        needs = {name: self.steps[name].digest for name in stage.needs if name in inputs.folders}
        counted = hook(stage, "counted") or (lambda section: section)
        parts: dict[str, Any] = {
            "stage": stage.name,
            "sections": {name: counted(job.sections[name]).model_dump(mode="json") for name in stage.sections},
            "needs": needs,
            "content": content,
            "data": {job.shown(path): self.digests.file(path) for path in files},
            "seed": job.seed,
            "trust_remote_code": job.trust_remote_code,
            "code": code,
            "tools": tools,
        }
        if "name" in stage.reads:
            parts["name"] = job.name
        return parts

    def content(self, folder: Path) -> str:
        if folder not in self._contents:
            large = sum(p.stat().st_size for p in folder.glob("*") if p.is_file()) > LARGE_BYTES
            large &= self.digests.reads_large
            task = self.progress.task(f"plan: reading {self.job.shown(folder)}")
            with task if large else nullcontext():
                self._contents[folder] = self.digests.folder(folder)
        return self._contents[folder]

    def why_run(
        self, stage: Stage, parts: Mapping[str, Any], digest: str, result: Mapping[str, Any] | None, inputs: Inputs
    ) -> str:
        """Why the stage must run; empty when its finished folder serves."""
        if ALL in self.force or stage.name in self.force:
            return "forced"
        if result is None:
            return "not done yet"
        if result.get("digest") != digest:
            return what_changed(result.get("parts", {}), parts)
        running = [name for name in inputs.folders if self.steps[name].action == "run"]
        if running:
            return f"{running[0]} runs again"
        for name in inputs.folders:
            build = (self.steps[name].result or {}).get("build")
            if result.get("built_from", {}).get(name) != build:
                return f"{name} was made again since"
        harmed = "" if stage.shared else damage(self.run.stage(stage.name), result)
        if harmed:
            return f"{harmed} since"
        stale = hook(stage, "stale")
        return str(stale(result.get("summary", {}), inputs)) if stale is not None else ""

    def preflight(self, stage: Stage, spec: Spec, inputs: Inputs) -> Estimate:
        check = hook(stage, "preflight")
        if check is None:
            return Estimate()
        try:
            estimate = check(spec, inputs)
        except SqtoolError as error:
            self.problem(error)
            return Estimate()
        assert isinstance(estimate, Estimate)
        needed = float(estimate.details.get("bytes", 0)) * DISK_MARGIN
        place = next(p for p in (self.run.path, *self.run.path.parents) if p.exists())
        free = shutil.disk_usage(place).free
        if needed > free:
            self.problem(
                InfrastructureError(
                    f"{stage.name} needs about {needed / 1e9:.1f} GB in {place}; {free / 1e9:.1f} GB are free",
                    remedy="Free some space, or use --root on a larger disk.",
                )
            )
        return estimate

    def details(self, stage: Stage, spec: Spec, inputs: Inputs) -> Estimate:
        """What is shown of a stage that is done; being done, it has no problems, whatever became of its inputs."""
        show = hook(stage, "details")
        try:
            return Estimate() if show is None else Estimate(details=show(spec, inputs))
        except SqtoolError:
            return Estimate()

    def problem(self, error: SqtoolError) -> None:
        if all(str(error) != str(known) for known in self.problems):
            self.problems.append(error)
