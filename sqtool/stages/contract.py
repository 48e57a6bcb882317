"""What a stage is: one function from its recipe section and the folders it needs to its own folder.

    def run(spec: XSpec, inputs: Inputs, out: Path) -> StageResult

`out` exists, is empty and is private to the stage (`<stage>.tmp/`); the pipeline renames it when `run` returns and
writes `result.json` last. A stage that raises leaves nothing behind. No session, no globals.

A stage's module may have further functions; the pipeline uses those that exist:

    skip(spec, inputs) -> str              why this stage has nothing to do for this recipe; "" when it has
    data_files(spec, inputs) -> list[Path] files named in the section; their content is part of the digest
    counted(section) -> Spec              the part of one of its sections that its result depends on (else all of it)
    fingerprint(spec, inputs) -> dict      versions of tools that shape the result; part of the digest, never raises
    preflight(spec, inputs) -> Estimate    raises what would fail later anyway; says how much work there is
    details(spec, inputs) -> dict          what the plan shows of a stage that is cached (else `preflight` says it)
    check(spec, summary) -> None           raises when a finished stage forbids the next ones (the gate)
    stale(summary, inputs) -> str          why a finished result no longer holds; "" when it does

They are called before anything runs, so `inputs.folders` then says where folders will be, not that they exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqtool.progress import SILENT, Progress
from sqtool.spec import Spec


@dataclass(frozen=True)
class Inputs:
    """What a stage may see beside its own section."""

    model: Path
    """Folder of the bf16 baseline checkpoint."""
    draft: Path | None
    """Folder of the draft model, if the recipe has one."""
    seed: int
    """The recipe's seed; everything random in a stage derives from it."""
    folders: Mapping[str, Path]
    """Folders of the stages that this one needs, by stage name; a stage that was skipped is absent."""
    trust_remote_code: bool = False
    progress: Progress = SILENT
    root: Path = Path()
    """The project root, which paths in the recipe are relative to."""
    candidate: Path | None = None
    """Folder of the candidate checkpoint: what the quantize stage makes, or the one that the recipe names."""
    earlier: Path | None = None
    """What an interrupted attempt at this stage left (logs, `*.part` files), to go on from where that is safe."""
    sections: Mapping[str, Spec] = field(default_factory=dict)
    """The other recipe sections that the stage table gives this stage (`engine`), by name."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Provenance for the release: the recipe's name, text and resolved values. Never steers a measurement."""


@dataclass(frozen=True)
class StageResult:
    """What goes into `result.json` beside the digest: small, JSON-able, read by the report and by `plan`."""

    summary: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimate:
    """How much a stage that will run has to do."""

    seconds: float | None = None
    """By a stated rule; None when nothing is known. Earlier runs on this machine replace it."""
    work: float = 1.0
    """A number that grows with the effort (items, samples x bytes), to scale earlier timings by."""
    rule: str = ""
    """The rule in words."""
    details: dict[str, Any] = field(default_factory=dict)
    """What the plan shows: sizes in bytes, counts."""
    warnings: tuple[str, ...] = ()
    """What nobody wants to learn at the end: said before anything runs, and no error."""
