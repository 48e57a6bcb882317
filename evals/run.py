"""Evaluating one model: start the engine, ask every item of every task, score, keep records."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from evals.client import Endpoint
from evals.engines import open_engine
from evals.engines.base import Engine, Limits, Question
from evals.harness.stage import ask_lm_eval
from evals.items import Item, take
from evals.records import PartWriter, answer_key, averaged, carry_parts, read_part, record, write_records
from evals.scorers import Answer
from evals.scorers.perplexity import over_all_tokens
from evals.spec import EngineSpec, EvaluateSpec, GenerationSpec
from evals.tasks import Task, load_tasks
from evals.watching import Decision, EnoughError, Follower, Watch
from sqtool.errors import EngineError
from sqtool.files import write_json
from sqtool.progress import SILENT, Progress

AS_SERVED = "as_served"


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
    """Answer and score all tasks with `model` in the engine; returns and writes (`out/evaluation.json`)

        {"engine": facts, "tasks": {task: {"n", "metrics": {name: mean}, "by_kind": {kind: {"n", "metrics"}},
         "slices": {field: {value: {"n", "metrics"}}}, "failures": {layer: count},
         "arguments": {argument: {missing, unexpected, type or value: count}}, "totals": {name: sum},
         "tokens": {"prompt", "completion"}, "seconds", "resumed", "of", "retried": {reason: count}}},
         "stopped": what ended it before the last item, or {},
         "as_served": {task: as in tasks} of some items asked once more so, or {}}

    and `out/records/<task>.jsonl`, one line an item in the items' order (`out/as_served/records/` for those of
    `as_served`, which nobody gates). The engine leaves its log in `out`. `resume_from` is the `out` of an interrupted
    run (it may be this `out`): answers that it kept under the same conditions are not asked for again. `seconds` counts
    the asking only, not the engine's start. Parts stay beside the records, for what comes after them may fail and only
    parts outlive that; the caller removes them when all is done (`evals.records.remove_parts`). A `watch` may end a
    task or the whole evaluation early (see `evals.watching`); `n` of the task's `of` items then have records, and tasks
    that were not begun are absent. lm-eval's tasks come last, each whole (see `evals.harness.run`). `probe` may ask the
    server whatever else is wanted of it, last of all; in process there is none to ask.

    Raises `DataError` or `UsageError` before anything is started when a task or an item is wrong, `EngineError` when
    the engine does not start, dies or does not answer. Then no record file of the task at hand exists, only its part.
    """
    if resume_from is not None:
        carry_parts(resume_from, out)
    tasks = load_tasks(spec, root)
    with open_engine(engine, model=model, out=out, root=root, progress=progress) as answering:
        # Of a server that is started here the fingerprint says it; its facts have figures that differ at each start.
        says = answering.facts() if engine.kind == "openai" else None

        def run(task: Task, folder: Path, earlier: Path | None, look: Watch | None) -> tuple[dict[str, Any], Decision]:
            key = answer_key(model, engine, task.generation, seed, root=root, says=says)
            return run_task(
                task,
                answering,
                spec,
                key=key,
                out=folder,
                progress=progress,
                seed=seed,
                resume_from=earlier,
                watch=look,
                keep_part=True,
            )

        results: dict[str, Any] = {}
        decision: Decision = "go_on"
        for task in tasks:
            results[task.name], decision = run(task, out, resume_from, watch)
            if decision == "all":
                break
        if decision != "all":
            results |= ask_lm_eval(
                spec,
                engine,
                answering,
                model=model,
                root=root,
                out=out,
                key=answer_key(model, engine, spec.generation, seed, root=root, says=says),
                progress=progress,
                seed=seed,
                resume_from=resume_from,
                keep_parts=True,
            )
        served: dict[str, Any] = {}
        # Of a candidate that is refused already nobody needs to know how it would be served.
        for task in as_served(spec, tasks) if decision != "all" else ():
            earlier = None if resume_from is None else resume_from / AS_SERVED
            served[task.name], _ = run(task, out / AS_SERVED, earlier, None)
        if probe is not None and answering.endpoint is not None:
            probe(answering.endpoint)
        facts = answering.facts()
    stopped = dict(watch.why) if watch else {}
    summary = {"engine": facts, "tasks": results, "stopped": stopped, AS_SERVED: served}
    write_json(out / "evaluation.json", summary)
    return summary


def as_served(spec: EvaluateSpec, tasks: Sequence[Task]) -> list[Task]:
    """The items that are asked once more without any sampling parameter; none where all of them are asked so."""
    generating = [task for task in tasks if task.scorer.asks == "generate" and not task.generation.as_served]
    if spec.as_served is None:
        return []
    some = spread(generating, spec.as_served.items)
    return [
        replace(task, generation=GenerationSpec(as_served=True, max_tokens=task.generation.max_tokens)) for task in some
    ]


def spread(tasks: Sequence[Task], items: int, total: int | None = None) -> list[Task]:
    """At least `items` of the tasks' items (or all), of each task its share, evenly over its own; of `total` items
    where there are more than theirs."""
    total = total or sum(len(task.items) for task in tasks)
    return [replace(task, items=tuple(take(task.items, math.ceil(items * len(task.items) / total)))) for task in tasks]


def run_task(
    task: Task,
    engine: Engine,
    spec: EvaluateSpec,
    *,
    key: str,
    out: Path,
    progress: Progress = SILENT,
    seed: int = 0,
    resume_from: Path | None = None,
    watch: Watch | None = None,
    keep_part: bool = False,
) -> tuple[dict[str, Any], Decision]:
    """Ask and score one task's items in an engine that is ready; writes its records and returns its part of the
    summary, and whether to go on with the next task. With `keep_part` its part file stays beside the records."""
    folder = out / "records"
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{task.name}.jsonl.part"
    earlier = (resume_from / "records" / part.name) if resume_from is not None else None
    answers = read_part(earlier, key, task.items) if earlier is not None else {}
    samples = range(task.generation.samples if task.scorer.asks == "generate" else 1)
    answers = {(name, sample): answer for (name, sample), answer in answers.items() if sample in samples}
    whole: dict[str, list[Answer]] = {}

    def complete(item: Item) -> bool:
        given = [answers[item.id, sample] for sample in samples if (item.id, sample) in answers]
        if len(given) < len(samples):
            return False
        whole[item.id] = given
        return True

    def scored(item: Item, given: Sequence[Answer]) -> dict[str, Any]:
        most = task.generation.max_tokens
        return averaged([record(task.name, item, answer, task.scorer.score(item, answer), most) for answer in given])

    resumed = sum(complete(item) for item in task.items)
    follower = None if watch is None else Follower(watch, task.name, task.items, scored)
    asked = task.items if follower is None else follower.items
    before = Counter(engine.retried)
    start = time.monotonic()
    label = f"evaluate: {task.name}" + (" (as served)" if task.generation.as_served else "")
    with progress.task(label, total=len(task.items)) as bar:
        bar.advance(resumed)
        every = [Question(item, sample) for item in task.items for sample in samples]
        kept = [(q, answers[q.item.id, q.sample]) for q in every if (q.item.id, q.sample) in answers]
        with PartWriter(part, key, kept) as writer:

            def done(question: Question, answer: Answer) -> None:
                writer.append(question, answer)
                answers[question.item.id, question.sample] = answer
                if complete(question.item):
                    bar.advance()
                    if follower is not None:
                        follower.after(whole)

            todo = [Question(item, sample) for item in asked for sample in samples if (item.id, sample) not in answers]
            with contextlib.suppress(EnoughError):
                if follower is not None:
                    follower.after(whole)
                if todo:
                    _ask(task, engine, todo, spec, seed, done)
    seconds = time.monotonic() - start

    decision: Decision = "go_on" if follower is None else follower.decision
    if follower is not None and decision != "go_on":
        looked_at = {item.id for item in follower.items[: follower.shown]}
        whole = {name: given for name, given in whole.items() if name in looked_at}
        progress.note(f"{task.name}: ended after {len(whole)} of {len(task.items)} items, which are enough")
    else:
        missing = [item.id for item in task.items if item.id not in whole]
        if missing:
            raise EngineError(f"task {task.name}: {len(missing)} items have no answer, first {missing[0]}")
    records = [scored(item, whole[item.id]) for item in task.items if item.id in whole]
    write_records(folder / f"{task.name}.jsonl", records)
    if not keep_part:
        part.unlink()
    counted = {"seconds": round(seconds, 3), "resumed": resumed, "of": len(task.items)}
    retried = dict(sorted((Counter(engine.retried) - before).items()))
    return {**summarise(records, task.spec.slices), **counted, "retried": retried}, decision


def _ask(task: Task, engine: Engine, todo: Sequence[Question], spec: EvaluateSpec, seed: int, done: Any) -> None:
    """Ask in the way that the scorer needs."""
    limits = Limits(spec.concurrency, spec.request_timeout, spec.retries)
    if task.scorer.asks == "loglikelihood":
        engine.loglikelihoods(todo, task.scorer.continuations, limits, done=done)
    else:
        engine.ask(todo, task.generation, limits, seed=seed, done=done)


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


def _wrong_arguments(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """How often each argument of tool calls was missing, unexpected, of a wrong type or of a wrong value."""
    counts = Counter((one["argument"], one["wrong"]) for row in records for one in row.get("faults", ()))
    found: dict[str, dict[str, int]] = {}
    for (argument, wrong), count in sorted(counts.items()):
        found.setdefault(argument, {})[wrong] = count
    return found


def summarise(records: Sequence[dict[str, Any]], slices: Sequence[str] = ()) -> dict[str, Any]:
    """A task's summary from its records (everything but the times)."""
    failures = Counter(row["failure"] or "none" for row in records)
    more: dict[str, Any] = {}
    arguments = _wrong_arguments(records)
    if arguments:
        more["arguments"] = arguments
    totals: dict[str, float] = {}
    for row in records:
        for name, value in row.get("totals", {}).items():
            totals[name] = totals.get(name, 0) + value
    if totals:
        more["totals"] = {**totals, **over_all_tokens(totals)}
    outputs = [output for row in records for output in row.get("outputs", [row["output"]])]
    return {
        **means(records),
        "by_kind": _grouped(records, [row["kind"] for row in records]),
        "slices": {
            name: _grouped(records, [row["fields"][name] for row in records]) for name in slices if name != "kind"
        },
        "failures": dict(sorted(failures.items())),
        **more,
        "tokens": {
            "prompt": sum(output["prompt_tokens"] for output in outputs),
            "completion": sum(output["completion_tokens"] for output in outputs),
        },
    }
