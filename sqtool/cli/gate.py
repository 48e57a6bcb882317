"""`sqtool gate`: the verdict, from a run's records or from two models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sqtool.cli.elsewhere import Elsewhere, elsewhere
from sqtool.cli.options import Settings, common, examples, running, trusting

if TYPE_CHECKING:
    from sqtool.gate.spec import GateSpec


@click.command(
    "gate",
    epilog=examples(
        "sqtool gate awq4                                   judge a run's records again",
        "sqtool gate awq4 --margin 0.01                     with a stricter margin",
        "sqtool gate --baseline bf16/ --candidate w4a16/ --task tool_calls --task tasks",
        "sqtool gate awq4 --device cuda                     evaluate a run's candidate again, on this machine's GPU",
        "sqtool gate awq4 --baseline-url http://a:8000/v1 --candidate-url http://b:8000/v1",
    ),
)
@click.argument("run", required=False)
@click.option("--baseline", metavar="MODEL", help="Folder or hub id of the bf16 model.")
@click.option("--candidate", metavar="MODEL", help="Folder or hub id of the quantized model.")
@click.option("--task", "tasks", multiple=True, metavar="TASK", help="Task name, or path of its YAML file. Repeatable.")
@click.option("--margin", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="max_drop of every metric.")
@click.option("--alpha", type=click.FloatRange(0, 0.5, min_open=True, max_open=True), help="One-sided error rate.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the evaluation.")
@elsewhere
@running
@common
@trusting
def command(
    settings: Settings,
    run: str | None,
    baseline: str | None,
    candidate: str | None,
    tasks: tuple[str, ...],
    margin: float | None,
    alpha: float | None,
    seed: int,
    force: tuple[str, ...],
    wait: bool,
    place: Elsewhere,
) -> int:
    """Judge a candidate against its baseline. Exit code: 0 pass, 1 regressed, 3 inconclusive.

    With RUN (a name in artifacts/runs, or a folder) the verdict is computed again from the run's records; nothing is
    evaluated or written, unless --device or --baseline-url says where to evaluate both sides anew (that is a run of its
    own). Without a recipe, --baseline and --candidate are evaluated on each --task first. Of servers that run already,
    RUN or --baseline and --candidate name the checkpoints that they serve.
    """
    if run is not None:
        if baseline or candidate or tasks or (force and not place.given):
            raise click.UsageError("give RUN, or --baseline, --candidate and --task, not both")
        if place.given:
            return _measured_elsewhere(settings, run, place, margin, alpha, force, wait)
        return _again(settings, run, margin, alpha)
    missing = [n for n, v in (("--baseline", baseline), ("--candidate", candidate), ("--task", tasks)) if not v]
    if missing:
        raise click.UsageError(f"give RUN, or also {', '.join(missing)}")
    assert baseline is not None
    assert candidate is not None
    return _two_models(settings, baseline, candidate, tasks, margin, alpha, seed, force, wait, place)


def _again(settings: Settings, run: str, margin: float | None, alpha: float | None) -> int:
    from sqtool.cli.terminal import Terminal
    from sqtool.errors import UsageError
    from sqtool.files import read_json
    from sqtool.gate.judge import judge
    from sqtool.gate.spec import GateSpec
    from sqtool.runfolder import RunFolder
    from sqtool.stages.baseline import RECORDS
    from sqtool.stages.gate import bindings_of, differences_of, sentence

    with Terminal(settings) as terminal:
        folder = RunFolder.find(settings.here, run)
        state = folder.state()
        sides = {name: place for name, (place, _) in folder.finished(state).items()}
        for name in ("baseline", "evaluate"):
            if name not in sides or not (sides[name] / RECORDS).is_dir():
                raise UsageError(
                    f"run {folder.path.name} has no records of the {name} stage",
                    remedy=f"`sqtool quantize {state.get('recipe') or 'RECIPE'} --until gate` makes them.",
                )
        spec = GateSpec.model_validate(read_json(folder.recipe_json)["gate"])
        spec = spec.changed(**_changed(spec, margin, alpha))
        verdict = judge(
            spec,
            sides["baseline"] / RECORDS,
            sides["evaluate"] / RECORDS,
            control=sides["control"] / RECORDS if "control" in sides else None,
            bindings=bindings_of(sides["baseline"], sides["evaluate"]),
            differences=differences_of(sides["evaluate"]),
        )
        if settings.json:
            terminal.json(verdict.model_dump(mode="json", by_alias=True))
        terminal.say(f"{verdict.outcome}: {folder.path.name}")
        for found in verdict.differences:
            allowed = " (allowed)" if found.allowed else ""
            terminal.say(f"  {found.name}: {found.candidate}, the baseline's {found.baseline}{allowed}")
        for metric in (*verdict.metrics, *verdict.slices):
            if metric.gated:
                terminal.say(f"  {sentence(metric)}")
        return verdict.exit_code


def _changed(spec: GateSpec, margin: float | None, alpha: float | None) -> dict[str, Any]:
    """Values of the gate section that the options change."""
    changed: dict[str, Any] = {} if alpha is None else {"alpha": alpha}
    if margin is not None:
        changed["metrics"] = {
            name: rule.model_copy(update={"max_drop": margin, "relative": None}) for name, rule in spec.metrics.items()
        }
    return changed


def _measured_elsewhere(
    settings: Settings,
    run: str,
    place: Elsewhere,
    margin: float | None,
    alpha: float | None,
    force: tuple[str, ...],
    wait: bool,
) -> int:
    from sqtool.cli.adhoc import again_job
    from sqtool.cli.runs import run_job
    from sqtool.cli.terminal import Terminal
    from sqtool.files import read_json
    from sqtool.gate.spec import GateSpec
    from sqtool.runfolder import RunFolder

    with Terminal(settings) as terminal:
        folder = RunFolder.find(settings.here, run)
        spec = GateSpec.model_validate(read_json(folder.recipe_json)["gate"])
        job = again_job(folder, place, _changed(spec, margin, alpha), trust=settings.trust_remote_code)
        return run_job(terminal, job, until="gate", force=force, wait=wait)


def _two_models(
    settings: Settings,
    baseline: str,
    candidate: str,
    tasks: tuple[str, ...],
    margin: float | None,
    alpha: float | None,
    seed: int,
    force: tuple[str, ...],
    wait: bool,
    place: Elsewhere,
) -> int:
    from sqtool.cli.adhoc import gate_job, gated_by_records
    from sqtool.cli.runs import run_quietly, show_outcome
    from sqtool.cli.terminal import Terminal
    from sqtool.stages.baseline import RECORDS

    with Terminal(settings) as terminal:
        job = gate_job(settings, baseline, candidate, tasks, place=place, seed=seed, progress=terminal.progress)
        outcome = run_quietly(terminal, job, until="evaluate", force=force, wait=wait)
        if outcome.exit_code == 0:
            # Which metrics a task has is in its records, so the gate is laid out now; what is measured is reused.
            folders = {r.name: job.root / r.folder / RECORDS for r in outcome.stages if r.folder}
            job = gated_by_records(job, folders["baseline"], folders["evaluate"], margin, alpha)
            outcome = run_quietly(terminal, job, until="gate", force=(), wait=True)
        show_outcome(terminal, job, outcome)
        return outcome.exit_code
