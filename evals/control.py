"""The A/A control: the baseline answers again, after a restart, in another order, at another concurrency (a server
that is not ours is not restarted, and in process it is batches of another size).

What then differs is the engine's doing. Where not one character of the first items differs, that is all that is asked;
otherwise all items are, so that the disagreement can be measured. It is the gate that says what follows from it.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evals.engines import open_engine
from evals.harness.stage import ask_lm_eval, sizes
from evals.records import answer_key, said
from evals.run import run_task, spread
from evals.spec import EngineSpec, EvaluateSpec
from evals.tasks import Task, load_tasks
from evals.watching import Decision
from sqtool.files import read_jsonl, sha256_text, write_json
from sqtool.progress import SILENT, Progress


@dataclass
class _Shuffled:
    """A watch that only orders: by a hash, which is neither the file's order nor the candidate's."""

    every: int = 1 << 30
    why: Mapping[str, Any] = field(default_factory=dict)

    def order(self, task: str, ids: Sequence[str]) -> list[int]:
        return sorted(range(len(ids)), key=lambda at: sha256_text(f"control {task} {ids[at]}"))

    def look(self, task: str, new: Sequence[Mapping[str, Any]]) -> Decision:
        return "go_on"


def control(
    spec: EvaluateSpec,
    engine: EngineSpec,
    *,
    model: Path,
    baseline: Path,
    root: Path,
    out: Path,
    progress: Progress = SILENT,
    seed: int = 0,
) -> dict[str, Any]:
    """Answer again with `model`; `baseline` holds its first `records/`. Writes `out/records/<task>.jsonl` and
    returns and writes (`out/control.json`) {"engine", "items", "different_answers", "concurrency"}.

    Raises as `evals.run.evaluate` does.
    """
    assert spec.control is not None
    tasks = load_tasks(spec, root)
    other = spec.model_copy(update={"concurrency": _another(spec.concurrency)})
    batches = engine.model_copy(update={"batch_size": _another(engine.batch_size)}) if engine.kind == "hf" else engine
    whole = sizes(spec, root)
    total = sum(len(task.items) for task in tasks) + sum(whole.values())
    # Rounded up: with fewer than were asked for, the gate would not take the engine for deterministic.
    part = {name: min(size, math.ceil(spec.control.items * size / total)) for name, size in whole.items()}
    few = spread(tasks, spec.control.items, total)
    with open_engine(batches, model=model, out=out, root=root, progress=progress) as answering:

        def ask(some: Sequence[Task], harness: Mapping[str, int], folder: Path) -> int:
            for task in some:
                key = answer_key(model, engine, task.generation, seed, root=root)
                run_task(task, answering, other, key=key, out=folder, progress=progress, seed=seed, watch=_Shuffled())
            ask_lm_eval(
                other,
                batches,
                answering,
                model=model,
                root=root,
                out=folder,
                key="control",
                progress=progress,
                seed=seed,
                limits=harness,
                shuffled=True,
            )
            return sum(_different(baseline, folder, name) for name in (*(t.name for t in some), *harness))

        different = ask(few, part, out)
        items = sum(len(task.items) for task in few) + sum(part.values())
        if different and items < total:
            progress.note(f"control: {different} answers differ, so all items are asked again")
            shutil.rmtree(out / "records")
            different, items = ask(tasks, whole, out), total
        facts = answering.facts()
    summary = {
        "engine": facts,
        "items": items,
        "different_answers": different,
        "concurrency": other.concurrency,
    }
    write_json(out / "control.json", summary)
    return summary


def _another(size: int) -> int:
    return max(1, size // 3) if size > 1 else 2


def _different(baseline: Path, folder: Path, task: str) -> int:
    """Items of a task in `folder` whose answers are not those of the baseline."""
    first, again = (
        {row["id"]: said(row) for _, row in read_jsonl(place / "records" / f"{task}.jsonl")}
        for place in (baseline, folder)
    )
    return sum(answer != first.get(name) for name, answer in again.items())
