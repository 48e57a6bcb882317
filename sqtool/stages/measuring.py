"""What the stages that start vLLM have in common: the data they read, the engine they bind to, and their time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.spec import EvaluateSpec
from sqtool.errors import DataError, EngineError
from sqtool.files import canonical_json
from sqtool.stages.contract import Estimate, Inputs
from sqtool.stages.sections import engine_section

if TYPE_CHECKING:
    from evals.tasks import Task

ITEMS_PER_SECOND = 18.0
"""Items of the reference tasks that vLLM answers a second on 2 CPU cores, 64 sequences at once."""
START_SECONDS = 35.0
DRIFT_TEXTS_PER_SECOND = 20.0


def item_files(spec: EvaluateSpec, root: Path) -> dict[str, Path]:
    """The file of test items of each task, by the task's name in the recipe."""
    return dict(zip(spec.tasks, _task_files(spec, root)[1::2], strict=True))


def task_files(spec: EvaluateSpec, root: Path) -> list[Path]:
    """Task files and their items, and the prose that drift reads."""
    files = _task_files(spec, root)
    if spec.drift is not None and spec.drift.prose is not None:
        prose = root / spec.drift.prose
        if prose.is_file():
            files.append(prose)
        elif "prose" in spec.drift.model_fields_set:
            raise DataError(prose, "no such file", field="evaluate.drift.prose")
    return files


def _task_files(spec: EvaluateSpec, root: Path) -> list[Path]:
    """Each task's file, followed by that of its items."""
    from evals.tasks import find_task, read_task

    files: list[Path] = []
    for name in spec.tasks:
        path = find_task(name, root)
        task = read_task(path)
        items = next((p for p in (root / task.items, path.parent / task.items) if p.is_file()), None)
        if items is None:
            raise DataError(
                path,
                f"no such file: {root / task.items}",
                field="items",
                remedy="Paths in a task file are relative to the project root or to the task file.",
            )
        files += [path, items]
    return files


def engine_fingerprint(inputs: Inputs) -> dict[str, Any]:
    """vLLM's version and the device: a measurement holds for these only."""
    from evals.engine_env import device_name, locate, resolve_env

    try:
        env = locate(resolve_env(engine_section(inputs), inputs.root))
    except EngineError:
        return {"vllm": "absent"}
    return {"vllm": env.version, "device": device_name(env.device)}


def engine_preflight(inputs: Inputs) -> None:
    """EngineError with the remedy when there is no vLLM environment."""
    from evals.engine_env import locate, resolve_env

    locate(resolve_env(engine_section(inputs), inputs.root))


@dataclass(frozen=True)
class TaskFacts:
    """What a plan needs of a task's items, after `evaluate.limit`. The sequences have one entry an item; `applies`
    names those metrics of which the scorer knows where they apply."""

    path: Path
    ids: Sequence[str]
    clusters: Sequence[str | None]
    kinds: Sequence[str]
    fields: Sequence[dict[str, Any]]
    applies: dict[str, list[bool]]

    @classmethod
    def of(cls, task: Task) -> TaskFacts:
        """The facts of a loaded task, which can then be forgotten."""
        metrics = [frozenset(task.scorer.applies(item)) for item in task.items]
        return cls(
            path=task.items_path,
            ids=[item.id for item in task.items],
            clusters=[item.cluster for item in task.items],
            kinds=[item.kind for item in task.items],
            fields=[item.slice_fields() for item in task.items],
            applies={name: [name in given for given in metrics] for name in task.scorer.metrics},
        )


_known: dict[str, dict[str, TaskFacts]] = {}


def item_facts(spec: EvaluateSpec, root: Path) -> dict[str, TaskFacts]:
    """Facts of each task; checking thousands of tool schemas takes seconds, so the stages share it."""
    from evals.tasks import load_tasks

    states = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in task_files(spec, root)]
    key = canonical_json([states, spec.limit])
    if key not in _known:
        _known[key] = {task.name: TaskFacts.of(task) for task in load_tasks(spec, root)}
    return _known[key]


def evaluation_estimate(spec: EvaluateSpec, inputs: Inputs) -> Estimate:
    """Loads and checks every task, so that a bad item fails before the engine starts; counts the items."""
    counts = {name: len(facts.ids) for name, facts in item_facts(spec, inputs.root).items()}
    items = sum(counts.values())
    texts = 0 if spec.drift is None else spec.drift.items + spec.drift.prose_items
    seconds = START_SECONDS + items / ITEMS_PER_SECOND + texts / DRIFT_TEXTS_PER_SECOND
    rule = f"{START_SECONDS:.0f} s to start vLLM, {ITEMS_PER_SECOND:.0f} items/s (the reference model on 2 cores)"
    return Estimate(seconds, work=max(1, items), rule=rule, details={"items": counts})
