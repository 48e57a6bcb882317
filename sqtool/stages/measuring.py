"""What the stages that ask an engine have in common: the data they read, the engine they bind to, and their time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evals.spec import EngineSpec, EvaluateSpec
from sqtool.errors import DataError
from sqtool.files import canonical_json
from sqtool.spec import Spec
from sqtool.stages.contract import Estimate, Inputs
from sqtool.stages.sections import engine_section

if TYPE_CHECKING:
    from evals.harness.loading import Loaded
    from evals.tasks import Task

ITEMS_PER_SECOND = 18.0
"""Items of the reference tasks that vLLM answers a second on 2 CPU cores, 64 sequences at once."""
START_SECONDS = 35.0
DRIFT_TEXTS_PER_SECOND = 20.0


def task_files(spec: EvaluateSpec, root: Path) -> list[Path]:
    """Task files and what they name, those of lm-eval's tasks, and the prose that drift reads."""
    from evals.harness.stage import files as lm_eval_files
    from evals.tasks import find_task
    from evals.tasks import task_files as files_of

    files = [file for name in spec.tasks for file in files_of(find_task(name, root), root)]
    files += lm_eval_files(spec, root)
    if spec.drift is not None and spec.drift.prose is not None:
        prose = root / spec.drift.prose
        if prose.is_file():
            files.append(prose)
        elif "prose" in spec.drift.model_fields_set:
            raise DataError(prose, "no such file", field="evaluate.drift.prose")
    return files


def data_files(spec: EvaluateSpec, inputs: Inputs) -> list[Path]:
    """What the answers depend on: the tasks' files, and those that the engine section names."""
    return [*task_files(spec, inputs.root), *engine_files(inputs)]


def engine_files(inputs: Inputs) -> list[Path]:
    """Files that `engine.extra_args` and `engine.generation_config` name."""
    from evals.engine_inputs import named_files

    return named_files(engine_section(inputs), inputs.root)


Side = Literal["baseline", "candidate"]


def fingerprint(spec: EvaluateSpec, inputs: Inputs, side: Side = "baseline") -> dict[str, Any]:
    """The engine's, and what lm-eval's tasks are."""
    from evals.harness.stage import versions

    return {**engine_fingerprint(inputs, side), **versions(spec, inputs.root)}


def engine_fingerprint(inputs: Inputs, side: Side = "baseline") -> dict[str, Any]:
    """The engine's version and the device: a measurement holds for these only."""
    from evals.engines import engine_class

    engine = engine_section(inputs).of_side(side)
    return engine_class(engine).fingerprint(engine, inputs.root)


def engine_preflight(inputs: Inputs, side: Side = "baseline") -> None:
    """What the engine lacks here, with the remedy: `EngineError` without a vLLM environment or a server that answers,
    `UsageError` for a device or a key that is not there."""
    from evals.engines import engine_class

    engine = engine_section(inputs).of_side(side)
    engine_class(engine).check(engine, inputs.root)


def counted_of(side: Side, section: Spec) -> Spec:
    """Where the other side is served changes nothing about this one; which device answered stands in the fingerprint,
    whether it was asked for or not."""
    if not isinstance(section, EngineSpec):
        return section
    own = section.of_side(side)
    return own if own.kind == "openai" else own.model_copy(update={"device": "auto"})


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

    @classmethod
    def of_lm_eval(cls, task: Loaded, limit: int | None) -> TaskFacts:
        """The facts of a task of lm-eval's, which has no clusters."""
        from evals.harness.catalogue import metrics_of_every_item
        from evals.harness.loading import item_id, slice_fields

        docs = task.docs(limit)
        return cls(
            path=task.path,
            ids=[item_id(number, doc) for number, doc in enumerate(docs)],
            clusters=[None] * len(docs),
            kinds=[task.name] * len(docs),
            fields=[slice_fields(doc) for doc in docs],
            applies={metric: [True] * len(docs) for metric in metrics_of_every_item(task.leaf)},
        )


_known: dict[str, dict[str, TaskFacts]] = {}


def item_facts(spec: EvaluateSpec, root: Path) -> dict[str, TaskFacts]:
    """Facts of each task; checking thousands of tool schemas takes seconds, so the stages share it."""
    from evals.harness.stage import loaded
    from evals.tasks import load_tasks

    states = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in task_files(spec, root)]
    key = canonical_json([states, spec.limit, spec.lm_eval and spec.lm_eval.model_dump(mode="json")])
    if key not in _known:
        tasks = load_tasks(spec, root)
        found = {task.name: TaskFacts.of(task) for task in tasks}
        others = loaded(spec, root, {task.name: task.path for task in tasks})
        _known[key] = found | {task.name: TaskFacts.of_lm_eval(task, limit) for task, limit in others}
    return _known[key]


def evaluation_estimate(spec: EvaluateSpec, inputs: Inputs) -> Estimate:
    """Loads and checks every task, so that a bad item fails before the engine starts; counts the items."""
    from evals.harness.stage import check_engine

    check_engine(spec, engine_section(inputs), inputs.root)
    counts = {name: len(facts.ids) for name, facts in item_facts(spec, inputs.root).items()}
    items = sum(counts.values())
    texts = 0 if spec.drift is None else spec.drift.items + spec.drift.prose_items
    seconds = START_SECONDS + items / ITEMS_PER_SECOND + texts / DRIFT_TEXTS_PER_SECOND
    rule = f"{START_SECONDS:.0f} s to start vLLM, {ITEMS_PER_SECOND:.0f} items/s (the reference model on 2 cores)"
    return Estimate(seconds, work=max(1, items), rule=rule, details={"items": counts})
