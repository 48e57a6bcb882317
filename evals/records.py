"""Answers on their way to records: appended as they come, sorted when the task is complete.

`records/<task>.jsonl.part` holds one line an answer, {"key", "item", "sample", "answer", "check"}: `key` says under
which conditions it was given (model, engine with its version and device, generation settings), `item` is the item's
digest, `sample` counts the answers to it, `check` is a hash of the rest. Only a line whose key and digest
are the present ones is reused, so a change of anything that could change an answer asks again; so does a line that was
damaged, and still is JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any

from evals.engine_inputs import named_files
from evals.engines import engine_class
from evals.engines.base import Question
from evals.items import Item
from evals.scorers import Answer, Loglikelihood, Score, ToolCall
from evals.scorers.builtin import builtin_scores
from evals.spec import EngineSpec, GenerationSpec
from sqtool.files import canonical_json, sha256_text, write_text

SYNC_SECONDS = 1.0
WHAT_WAS_SAID = ("text", "tool_calls", "finish_reason")
"""The parts of a record's output that are the model's answer; the others count tokens."""
Answers = dict[tuple[str, int], Answer]
"""Answers by the item's id and which of its answers it is."""


def answer_key(
    model: Path,
    engine: EngineSpec,
    generation: GenerationSpec,
    seed: int,
    *,
    root: Path = Path(),
    says: Mapping[str, Any] | None = None,
) -> str:
    """Identifies the conditions of an answer: the model, the engine with its version, device and files, the settings.

    `root` is what the engine's environment is looked for below, `says` what a server that runs already says of itself.
    A model folder is taken by its files' names, sizes and times: reading a large one through would cost more than
    the answers that resuming saves.
    """
    files = [
        (path.relative_to(model).as_posix(), path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(model.rglob("*"))
        if path.is_file()
    ]
    # How long to wait for a start changes no answer.
    flags = engine.model_dump(mode="json", exclude={"startup_timeout"})
    # Each sample has a seed of its own, so that more of them leave the earlier ones as they are.
    drawn = generation.model_dump(mode="json", exclude={"samples"})
    named = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in named_files(engine, root)]
    value = {
        "files": files,
        "engine": flags,
        "by": engine_class(engine).fingerprint(engine, root),
        "named": named,
        "says": says,
        "generation": drawn,
        "seed": seed,
    }
    return sha256_text(canonical_json(value))


def answer_json(answer: Answer) -> dict[str, Any]:
    """The answer as it stands in a record; log-likelihoods only where they were asked for."""
    value = asdict(answer)
    if not answer.loglikelihoods:
        del value["loglikelihoods"]
    return value


def answer_from_json(value: Mapping[str, Any]) -> Answer:
    """The inverse of `answer_json`."""
    calls = tuple(ToolCall(**call) for call in value["tool_calls"])
    likely = tuple(Loglikelihood(**one) for one in value.get("loglikelihoods", ()))
    return Answer(**{**value, "tool_calls": calls, "loglikelihoods": likely})


def read_part(path: Path, key: str, items: Sequence[Item]) -> Answers:
    """The answers that `path` has for these items under this key. A torn last line, or any line that is not what it
    should be, is left out: its item is asked again."""
    digests = {item.digest(): item.id for item in items}
    found: Answers = {}
    if not path.is_file():
        return found
    # Not splitlines(): an answer may hold U+2028 and other ends of lines that end none here.
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            value = json.loads(line)
            if unchecked(value)["key"] == key and value["item"] in digests:
                found[digests[value["item"]], int(value["sample"])] = answer_from_json(value["answer"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return found


def carry_parts(earlier: Path, out: Path) -> None:
    """Copy the parts that an interrupted evaluation left in `earlier` to `out`, each until it is written anew: an
    attempt that fails before it comes to a task must not cost that task's answers."""
    if earlier.resolve() == out.resolve():
        return
    for path in sorted(earlier.rglob("*.jsonl.part")):
        target = out / path.relative_to(earlier)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def remove_parts(out: Path) -> None:
    """Remove the parts under `out`, the folder of an evaluation that is done with everything."""
    for path in list(out.rglob("*.jsonl.part")):
        path.unlink()


def checked(value: Mapping[str, Any]) -> dict[str, Any]:
    """`value` with a `check` in it: a hash of all the rest."""
    return {**value, "check": sha256_text(canonical_json(value))[:16]}


def unchecked(value: dict[str, Any]) -> dict[str, Any]:
    """`value` without its `check`, taken out of it; `ValueError` when that does not fit the rest."""
    if value.pop("check", None) != checked(value)["check"]:
        raise ValueError("damaged since it was written")
    return value


class PartWriter:
    """Appends answers to a part file. Each line reaches the operating system at once (it outlives a kill -9 of this
    process) and the disk within a second or so (it outlives a power cut, but for that second)."""

    def __init__(self, path: Path, key: str, kept: Sequence[tuple[Question, Answer]] = ()) -> None:
        self.path, self.key = path, key
        # What is kept is written anew, so that a torn line of an earlier run is gone.
        write_text(path, "".join(self._line(question, answer) for question, answer in kept))
        self._handle = path.open("a", encoding="utf-8", newline="\n")
        self._synced = time.monotonic()

    def _line(self, question: Question, answer: Answer) -> str:
        asked = {"key": self.key, "item": question.item.digest(), "sample": question.sample}
        return canonical_json(checked({**asked, "answer": answer_json(answer)})) + "\n"

    def append(self, question: Question, answer: Answer) -> None:
        """Keep one answer."""
        self._handle.write(self._line(question, answer))
        self._handle.flush()
        now = time.monotonic()
        if now - self._synced > SYNC_SECONDS:
            os.fsync(self._handle.fileno())
            self._synced = now

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.flush()
        os.fsync(self._handle.fileno())
        self._handle.close()


def record(task: str, item: Item, answer: Answer, score: Score, max_tokens: int) -> dict[str, Any]:
    """One line of `records/<task>.jsonl`; `max_tokens` is what the answer was allowed, unless the item says it."""
    # Where probabilities were asked for, nothing was said that could be empty or too long.
    always = {} if answer.loglikelihoods else builtin_scores(answer, item.max_tokens or max_tokens)
    more: dict[str, Any] = {}
    if score.faults:
        more["faults"] = [asdict(fault) for fault in score.faults]
    if score.totals:
        more["totals"] = dict(score.totals)
    return {
        "task": task,
        "id": item.id,
        "kind": item.kind,
        "cluster": item.cluster,
        "fields": item.slice_fields(),
        "scores": {**score.scores, **always},
        "failure": score.failure,
        "detail": score.detail,
        **more,
        "output": answer_json(answer),
        "expected": item.expected.model_dump(mode="json", exclude_none=True) if item.expected else None,
    }


def averaged(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One record from those of an item's several answers: the means of their scores, the commonest failure among
    those that have one, and all answers in `outputs`, the first of them in `output` as well."""
    first = records[0]
    if len(records) == 1:
        return first
    failed = [row for row in records if row["failure"] is not None]
    worst = Counter(row["failure"] for row in failed).most_common(1)[0][0] if failed else None
    detail = next((row["detail"] for row in failed if row["failure"] == worst), "")
    return {
        **first,
        "scores": {name: fmean(row["scores"][name] for row in records) for name in first["scores"]},
        "failure": worst,
        "detail": f"{len(failed)} of {len(records)} answers are wrong; one of them: {detail or worst}"
        if failed
        else "",
        "outputs": [row["output"] for row in records],
    }


def said(record: Mapping[str, Any]) -> Any:
    """What a record says that the model answered, to compare two answers to one item character by character. Of
    log-likelihoods, which differ in their last digits when prompts are batched differently, it is what they decided:
    the scores."""
    outputs = record.get("outputs") or [record.get("output")]
    return [_said(output, record) if isinstance(output, Mapping) else output for output in outputs]


def _said(output: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    answer = {key: output.get(key) for key in WHAT_WAS_SAID}
    return {**answer, "scores": record["scores"]} if output.get("loglikelihoods") else answer


def write_records(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """The finished file, in one step."""
    write_text(path, "".join(canonical_json(r) + "\n" for r in records))
