"""Evaluating one model: start the engine, ask every item of every task, score, keep records."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from evals.client import Endpoint, Limits, ask_all
from evals.items import Item
from evals.records import PartWriter, answer_key, read_part, record, write_records
from evals.scorers import Answer
from evals.server import VllmServer
from evals.spec import EngineSpec, EvaluateSpec
from evals.tasks import Task, load_tasks
from evals.watching import Decision, EnoughError, Follower, Watch
from sqtool.errors import EngineError
from sqtool.files import write_json
from sqtool.progress import SILENT, Progress


def evaluate(
    spec: EvaluateSpec,
    engine: EngineSpec,
    *,
    model: Path,
    root: Path,
    out: Path,
    progress: Progress = SILENT,
    seed: int = 0,
    resume_from: Path | None = None,
    watch: Watch | None = None,
    probe: Callable[[Endpoint], None] | None = None,
) -> dict[str, Any]:
    """Answer and score all tasks with `model` in a vLLM server; returns and writes (`out/evaluation.json`)

        {"engine": facts, "tasks": {task: {"n", "metrics": {name: mean}, "by_kind": {kind: {"n", "metrics"}},
         "slices": {field: {value: {"n", "metrics"}}}, "failures": {layer: count}, "tokens": {"prompt", "completion"},
         "seconds", "resumed", "of"}}, "stopped": what ended it before the last item, or {}}

    and `out/records/<task>.jsonl`, one line an item in the items' order. `out/vllm.log` is the engine's log.
    `resume_from` is the `out` of an interrupted run (it may be this `out`): answers that it kept under the same
    conditions are not asked for again. `seconds` counts the asking only, not the engine's start. A `watch` may end a
    task or the whole evaluation early (see `evals.watching`); `n` of the task's `of` items then have records, and
    tasks that were not begun are absent. `probe` may ask the server whatever else is wanted of it, last of all.

    Raises `DataError` or `UsageError` before anything is started when a task or an item is wrong, `EngineError` when
    the engine does not start, dies or does not answer. Then no record file of the task at hand exists, only its part.
    """
    tasks = load_tasks(spec, root)
    with VllmServer(model, engine, log=out / "vllm.log", root=root, progress=progress) as server:
        endpoint = Endpoint(server.base_url, server.api_key, server.served_name, server.require_alive)
        results: dict[str, Any] = {}
        for task in tasks:
            results[task.name], decision = run_task(
                task,
                endpoint,
                spec,
                key=answer_key(model, engine, task.generation, seed),
                out=out,
                progress=progress,
                seed=seed,
                resume_from=resume_from,
                watch=watch,
            )
            if decision == "all":
                break
        if probe is not None:
            probe(endpoint)
        summary = {"engine": server.facts(), "tasks": results, "stopped": dict(watch.why) if watch else {}}
    write_json(out / "evaluation.json", summary)
    return summary


def run_task(
    task: Task,
    endpoint: Endpoint,
    spec: EvaluateSpec,
    *,
    key: str,
    out: Path,
    progress: Progress = SILENT,
    seed: int = 0,
    resume_from: Path | None = None,
    watch: Watch | None = None,
) -> tuple[dict[str, Any], Decision]:
    """Ask and score one task's items at an endpoint; writes its records and returns its part of the summary, and
    whether to go on with the next task."""
    folder = out / "records"
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{task.name}.jsonl.part"
    earlier = (resume_from / "records" / part.name) if resume_from is not None else None
    answers = read_part(earlier, key, task.items) if earlier is not None else {}
    resumed = len(answers)

    def scored(item: Item, answer: Answer) -> dict[str, Any]:
        return record(task.name, item, answer, task.scorer.score(item, answer), task.generation.max_tokens)

    follower = None if watch is None else Follower(watch, task.name, task.items, scored)
    asked = task.items if follower is None else follower.items
    start = time.monotonic()
    with progress.task(f"evaluate: {task.name}", total=len(task.items)) as bar:
        bar.advance(resumed)
        kept = [(item, answers[item.id]) for item in task.items if item.id in answers]
        with PartWriter(part, key, kept) as writer:

            def done(item: Item, answer: Answer) -> None:
                writer.append(item, answer)
                answers[item.id] = answer
                bar.advance()
                if follower is not None:
                    follower.after(answers)

            todo = [item for item in asked if item.id not in answers]
            limits = Limits(spec.concurrency, spec.request_timeout, spec.retries)
            with contextlib.suppress(EnoughError):
                if follower is not None:
                    follower.after(answers)
                if todo:
                    asyncio.run(ask_all(endpoint, todo, task.generation, limits, seed=seed, done=done))
    seconds = time.monotonic() - start

    decision: Decision = "go_on" if follower is None else follower.decision
    if follower is not None and decision != "go_on":
        looked_at = {item.id for item in follower.items[: follower.shown]}
        answers = {name: answer for name, answer in answers.items() if name in looked_at}
        progress.note(f"{task.name}: ended after {len(answers)} of {len(task.items)} items, which are enough")
    else:
        missing = [item.id for item in task.items if item.id not in answers]
        if missing:
            raise EngineError(f"task {task.name}: {len(missing)} items have no answer, first {missing[0]}")
    records = [scored(item, answers[item.id]) for item in task.items if item.id in answers]
    write_records(folder / f"{task.name}.jsonl", records)
    part.unlink()
    counted = {"seconds": round(seconds, 3), "resumed": resumed, "of": len(task.items)}
    return {**summarise(records, task.spec.slices), **counted}, decision


def means(records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """{"n": records, "metrics": {name: mean over the records that have it}}; nothing is rounded."""
    rows = list(records)
    names = list(dict.fromkeys(name for row in rows for name in row["scores"]))
    return {
        "n": len(rows),
        "metrics": {name: fmean(row["scores"][name] for row in rows if name in row["scores"]) for name in names},
    }


def _grouped(records: Sequence[dict[str, Any]], values: Sequence[object]) -> dict[str, Any]:
    """Means of the records of each value; `values` has one for each record."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row, value in zip(records, values, strict=True):
        groups.setdefault(str(value), []).append(row)
    return {value: means(groups[value]) for value in sorted(groups)}


def summarise(records: Sequence[dict[str, Any]], slices: Sequence[str] = ()) -> dict[str, Any]:
    """A task's summary from its records (everything but the times)."""
    failures = Counter(row["failure"] or "none" for row in records)
    return {
        **means(records),
        "by_kind": _grouped(records, [row["kind"] for row in records]),
        "slices": {
            name: _grouped(records, [row["fields"][name] for row in records]) for name in slices if name != "kind"
        },
        "failures": dict(sorted(failures.items())),
        "tokens": {
            "prompt": sum(row["output"]["prompt_tokens"] for row in records),
            "completion": sum(row["output"]["completion_tokens"] for row in records),
        },
    }
