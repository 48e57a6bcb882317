"""What the evaluation, its control and the stages need of lm-eval's tasks; without any, nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from evals.engines.base import Engine, Limits
from evals.spec import EngineSpec, EvaluateSpec
from sqtool.errors import UsageError
from sqtool.progress import SILENT, Progress

if TYPE_CHECKING:
    from evals.engines.hf import HfEngine
    from evals.harness.loading import Loaded


def ask_lm_eval(
    spec: EvaluateSpec,
    section: EngineSpec,
    engine: Engine,
    *,
    model: Path,
    root: Path,
    out: Path,
    key: str,
    progress: Progress = SILENT,
    seed: int = 0,
    resume_from: Path | None = None,
    limits: Mapping[str, int] | None = None,
    shuffled: bool = False,
    keep_parts: bool = False,
) -> dict[str, Any]:
    """What `evals.harness.run.run` gives, with an engine that is ready and has the checkpoint in `model`; {} where the
    recipe names no lm-eval task."""
    if spec.lm_eval is None:
        return {}
    from evals.harness.run import run

    def ask(lm: Any) -> dict[str, Any]:
        return run(
            spec,
            lm,
            root=root,
            out=out,
            key=key,
            progress=progress,
            resume_from=resume_from,
            limits=limits,
            keep_parts=keep_parts,
        )

    if engine.endpoint is None:
        from evals.harness.in_process import InProcess

        with cast("HfEngine", engine).as_stored() as network:  # the one engine that is not asked over HTTP
            return ask(InProcess(network, batch_size=section.batch_size))
    from evals.harness.served import Served

    return ask(
        Served.of(
            model,
            engine.endpoint,
            limits=Limits(spec.concurrency, spec.request_timeout, spec.retries),
            max_length=section.max_model_len if section.kind == "vllm" else None,
            seed=seed,
            shuffled=shuffled,
        )
    )


def files(spec: EvaluateSpec, root: Path) -> list[Path]:
    """Files that the results depend on."""
    if spec.lm_eval is None:
        return []
    from evals.harness.catalogue import data_files

    return data_files(spec.lm_eval, root)


def versions(spec: EvaluateSpec, root: Path) -> dict[str, str]:
    """lm-eval's version and the tasks' own, for a digest. Never raises."""
    if spec.lm_eval is None:
        return {}
    from evals.harness.catalogue import fingerprint

    return fingerprint(spec.lm_eval, root)


def names(spec: EvaluateSpec, root: Path) -> list[str]:
    """The leaf tasks, without loading any; `UsageError` for a name that lm-eval does not know."""
    if spec.lm_eval is None:
        return []
    from evals.harness.catalogue import read

    return list(read(spec.lm_eval, root).leaves)


def check_metric(spec: EvaluateSpec, root: Path, task: str, metric: str) -> None:
    """`UsageError` for a metric of an lm-eval task that has no score of each item, or does not exist."""
    if spec.lm_eval is None:
        return
    from evals.harness.catalogue import metric_problem, read

    leaf = read(spec.lm_eval, root).leaves.get(task)
    problem = None if leaf is None else metric_problem(leaf, metric)
    if problem is not None:
        raise problem


def check_engine(spec: EvaluateSpec, section: EngineSpec, root: Path) -> None:
    """`DataError` for a task with generation settings that the engine does not have."""
    if spec.lm_eval is None or section.kind == "hf":
        return
    from evals.harness.catalogue import check_served, read

    check_served(spec.lm_eval, read(spec.lm_eval, root))


def loaded(spec: EvaluateSpec, root: Path, own: Mapping[str, Path]) -> Iterator[tuple[Loaded, int | None]]:
    """Each leaf task with its data, checked, and the limit on its items. `own` are the other tasks of the evaluation
    with their files: the name of one of these is a `UsageError`."""
    if spec.lm_eval is None:
        return
    from evals.harness.loading import limit_of, load

    for task in load(spec.lm_eval, root):
        if task.name in own:
            raise UsageError(
                f"evaluate.lm_eval.tasks: the task of {own[task.name]} is called {task.name!r} too",
                remedy="Give the task in that file another name.",
            )
        yield task, limit_of(spec)


def sizes(spec: EvaluateSpec, root: Path) -> dict[str, int]:
    """How many items each lm-eval task has in the evaluation."""
    return {task.name: task.count(limit) for task, limit in loaded(spec, root, {})}
