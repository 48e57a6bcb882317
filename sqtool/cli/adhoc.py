"""Jobs without a recipe file: two models to gate, or one to evaluate. They run through the same stages and caches."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqtool.cli.elsewhere import Elsewhere
from sqtool.cli.options import Settings
from sqtool.errors import UsageError
from sqtool.files import canonical_json, sha256_text
from sqtool.pipeline import Job, find_model
from sqtool.progress import Progress

if TYPE_CHECKING:
    from evals.spec import EngineSpec
    from sqtool.runfolder import RunFolder
    from sqtool.spec import Spec

NAME_CHARS = 40


def gate_job(
    settings: Settings,
    baseline: str,
    candidate: str,
    tasks: Sequence[str],
    *,
    place: Elsewhere,
    seed: int,
    progress: Progress,
) -> Job:
    """Baseline and candidate on some tasks. Which metrics are gated is known when there are records of them."""
    from evals.spec import EngineSpec

    root = settings.here
    model = find_model(baseline, root, Path.cwd(), what="--baseline", progress=progress)
    checkpoint = find_model(candidate, root, Path.cwd(), what="--candidate", progress=progress)
    if model == checkpoint:
        raise UsageError("baseline and candidate are the same folder", remedy="Name the quantized model as candidate.")
    return _job("gate", root, model, checkpoint, tasks, seed, place.engine(EngineSpec()))


def again_job(folder: RunFolder, place: Elsewhere, changed: Mapping[str, Any], *, trust: bool = False) -> Job:
    """The evaluation and the gate of a run once more, measured in another place, as a run of its own.

    `changed` are values of the gate section. Raises `UsageError` when the run's candidate is not there any more, and
    when its recipe has code of others run and not `trust`: a run folder may come from anywhere.
    """
    from calibrate.spec import CalibrateSpec
    from evals.spec import EngineSpec, EvaluateSpec
    from quantize.spec import QuantizeSpec
    from sqtool.files import read_json
    from sqtool.gate.spec import GateSpec
    from sqtool.pipeline.foreign import asked_by, refuse_untrusted
    from sqtool.release.spec import ReleaseSpec
    from sqtool.speculate.spec import SpeculateSpec

    state, recipe = folder.state(), read_json(folder.recipe_json)
    root = folder.project(state)
    given = recipe["quantize"].get("checkpoint") or folder.stage("quantize") / "checkpoint"
    model = find_model(state["model"], root, what="the run's model")
    checkpoint = find_model(given, root, what="the run's candidate")
    # Drift has nothing to do with the engine, and the run has it.
    evaluate = EvaluateSpec.model_validate({**recipe["evaluate"], "drift": None})
    engine = place.engine(EngineSpec.model_validate(recipe["engine"]))
    sections: dict[str, Spec] = {
        "quantize": QuantizeSpec(checkpoint=str(checkpoint)),
        "evaluate": evaluate,
        "gate": GateSpec.model_validate(recipe["gate"]).changed(**changed),
        "engine": engine,
        "calibrate": CalibrateSpec(),
        "speculate": SpeculateSpec(enabled=False),
        "release": ReleaseSpec(),
    }
    asked = asked_by(engine, evaluate.lm_eval, root, (root,))
    if not trust:
        refuse_untrusted(asked, folder.recipe_json.name)
    resolved = {name: section.model_dump(mode="json") for name, section in sections.items()}
    return Job(
        foreign_code=tuple(found.what for found in asked),
        name=f"{state['name']}-{place.label}",
        root=root,
        model=model,
        checkpoint=checkpoint,
        seed=int(recipe["seed"]),
        sections=sections,
        resolved={"model": str(model), "seed": int(recipe["seed"]), **resolved},
    )


def eval_job(settings: Settings, model: str, tasks: Sequence[str], *, seed: int, progress: Progress) -> Job:
    """One model on some tasks (default: the usual ones), as the baseline of a job that goes no further."""
    from evals.spec import EngineSpec

    root = settings.here
    return _job(
        "eval",
        root,
        find_model(model, root, Path.cwd(), what="--model", progress=progress),
        None,
        tasks,
        seed,
        EngineSpec(),
    )


def _job(
    what: str,
    root: Path,
    model: Path,
    checkpoint: Path | None,
    tasks: Sequence[str],
    seed: int,
    engine: EngineSpec,
) -> Job:
    from calibrate.spec import CalibrateSpec
    from evals.spec import EvaluateSpec
    from quantize.spec import QuantizeSpec
    from sqtool.gate.spec import GateSpec
    from sqtool.release.spec import ReleaseSpec
    from sqtool.speculate.spec import SpeculateSpec

    subject = checkpoint or model
    named = tuple(str(Path(task).resolve()) if Path(task).is_file() else task for task in tasks)
    if len(set(named)) < len(named):
        raise UsageError("a task is named twice")
    chosen: dict[str, Any] = {"tasks": named} if named else {}
    sections: dict[str, Spec] = {
        "calibrate": CalibrateSpec(),
        "quantize": QuantizeSpec(checkpoint=str(subject)),
        # Drift needs a second library to load both models; a gate over any two models must not ask for that.
        "evaluate": EvaluateSpec(drift=None, **chosen),
        "gate": GateSpec(),
        "speculate": SpeculateSpec(enabled=False),
        "release": ReleaseSpec(),
        "engine": engine,
    }
    parts = [str(model), str(checkpoint), sorted(named), seed, engine.model_dump(mode="json", exclude_defaults=True)]
    key = sha256_text(canonical_json(parts))[:8]
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", subject.name).strip("-.")[:NAME_CHARS] or "model"
    resolved = {name: section.model_dump(mode="json") for name, section in sections.items()}
    return Job(
        name=f"{what}-{stem}-{key}",
        root=root,
        model=model,
        checkpoint=subject,
        seed=seed,
        sections=sections,
        resolved={"model": str(model), "seed": seed, **resolved},
    )


def gated_by_records(job: Job, baseline: Path, candidate: Path, margin: float | None, alpha: float | None) -> Job:
    """The job with a gate over the usual metrics of the tasks that were recorded."""
    from sqtool.gate.defaults import spec_for
    from sqtool.pipeline.run import with_sections

    options: dict[str, Any] = {}
    if margin is not None:
        options["max_drop"] = margin
    if alpha is not None:
        options["alpha"] = alpha
    return with_sections(job, gate=spec_for(baseline, candidate, **options))
