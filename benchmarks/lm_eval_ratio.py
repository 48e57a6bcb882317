"""The same local tasks through the command `lm_eval --model hf` and through sqtool's harness on the same engine.

    python -m benchmarks.lm_eval_ratio [--repeats 3] [--items 200] [--model FOLDER]

Two tasks are made from the reference pair's data: closed-book questions to answer (`generate_until`) and values to
look up among four (`multiple_choice`). Whole commands are timed, from the start of Python to the last file, in turn.
`default` is what each does when nobody says how to batch: lm_eval one prompt at a time, sqtool 16 (`batch_size` of
`engine: {kind: hf}`). Both sides ask lm-eval's own transformers model, HFLM, on the processor, and write the score of
every item. Wall-clock time is what a user waits for; on a machine that others use too, CPU seconds (of the command and
all that it starts) say more. sqtool is called as its stages call it, `evals.run.evaluate`.
Needs the reference pair.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "artifacts/reference/target"
TEST = ROOT / "artifacts/reference/data/test"
TASKS = ("recall_text", "lookup_choice")
BATCHES: dict[str, tuple[int | None, int | None]] = {"default": (None, None), "1": (1, 1), "16": (16, 16)}
"""Name -> batch size of lm_eval and of sqtool, None for what it does by itself."""

YAML = """\
task: {task}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
doc_to_text: "{{{{question}}}}"
{rest}
metadata: {{version: 1.0}}
"""
TEXT = """\
doc_to_target: "{{answer}}"
output_type: generate_until
generation_kwargs: {until: ["\\n"], max_gen_toks: 32, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]"""
CHOICE = """\
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: label
target_delimiter: ""
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}"""


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def texts(items: int) -> Iterator[dict[str, Any]]:
    """Questions with their answers."""
    for row in rows(TEST / "recall.jsonl")[:items]:
        yield {"question": row["messages"][0]["content"], "answer": row["expected"]["text"]}


def choices(items: int) -> Iterator[dict[str, Any]]:
    """Questions about a list, with the right value and three others of it."""
    draw = random.Random(0)
    made = 0
    for row in rows(TEST / "tasks.jsonl"):
        if row["kind"] != "lookup" or made == items:
            continue
        question, answer = row["messages"][0]["content"], row["expected"]["text"]
        values = dict.fromkeys(re.findall(r"^\w+: (\w+)$", question, re.MULTILINE))
        others = [value for value in values if value != answer]
        if len(others) < 3:
            continue
        offered = [*draw.sample(others, 3), answer]
        draw.shuffle(offered)
        made += 1
        yield {"question": question, "choices": offered, "label": offered.index(answer)}


def make_tasks(folder: Path, items: int) -> None:
    for task, made, rest in zip(TASKS, (texts(items), choices(items)), (TEXT, CHOICE), strict=True):
        data = folder / f"{task}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
        (folder / f"{task}.yaml").write_text(YAML.format(task=task, data=data, rest=rest), encoding="utf-8")


def by_sqtool(model: Path, folder: Path, out: Path, batch: int | None) -> None:
    """sqtool's side, in a process of its own."""
    from evals.harness.spec import LmEvalSpec
    from evals.run import evaluate
    from evals.spec import EngineSpec, EvaluateSpec

    named = LmEvalSpec(tasks=TASKS, include_path=str(folder), apply_chat_template=True)
    engine = EngineSpec(kind="hf", device="cpu", **({} if batch is None else {"batch_size": batch}))
    evaluate(EvaluateSpec(tasks=(), lm_eval=named, drift=None), engine, model=model, root=ROOT, out=out)


def command(side: str, model: Path, folder: Path, out: Path, batch: int | None) -> list[str]:
    chosen = [] if batch is None else ["--batch_size", str(batch)]
    if side == "sqtool":
        words = ["-m", "benchmarks.lm_eval_ratio", "--one", str(out), "--tasks", str(folder), "--model", str(model)]
        return [sys.executable, *words, *chosen]
    words = ["-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={model}", "--device", "cpu"]
    words += ["--tasks", ",".join(TASKS), "--include_path", str(folder), "--apply_chat_template"]
    return [sys.executable, *words, "--log_samples", "--output_path", str(out), *chosen]


def timed(side: str, model: Path, folder: Path, out: Path, batch: int | None) -> tuple[float, float]:
    """Wall-clock and CPU seconds of one command."""
    out.mkdir(parents=True)
    words = command(side, model, folder, out, batch)
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, cwd=ROOT, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True)
    seconds, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def scores(side: str, out: Path) -> dict[tuple[str, int, str], float]:
    """(task, doc_id, metric) -> score, as each side wrote it."""
    found = {}
    for task in TASKS:
        if side == "sqtool":
            for row in rows(out / "records" / f"{task}.jsonl"):
                for metric in ("exact_match", "acc", "acc_norm"):
                    if metric in row["scores"]:
                        found[task, row["lm_eval"]["doc_id"], metric] = float(row["scores"][metric])
        else:
            (path,) = out.rglob(f"samples_{task}_*.jsonl")
            for row in rows(path):
                found |= {(task, row["doc_id"], metric): float(row[metric]) for metric in row["metrics"]}
    return found


def compare(model: Path, items: int, repeats: int) -> None:
    print(
        "| batch | lm_eval, s | sqtool, s | ratio | lm_eval, CPU s | sqtool, CPU s | CPU ratio | scores | different |"
        "\n|---|---|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "tasks"
        folder.mkdir()
        make_tasks(folder, items)
        for label, (theirs, ours) in BATCHES.items():
            times: dict[str, list[tuple[float, float]]] = {"lm_eval": [], "sqtool": []}
            for turn in range(repeats):
                sides = [("lm_eval", theirs), ("sqtool", ours)]
                for side, batch in sides if turn % 2 == 0 else reversed(sides):
                    times[side].append(timed(side, model, folder, Path(name) / f"{label}-{side}-{turn}", batch))
            cells = []
            for clock in (0, 1):
                taken = {side: [each[clock] for each in measured] for side, measured in times.items()}
                ratio = median(own / other for own, other in zip(taken["sqtool"], taken["lm_eval"], strict=True))
                cells += [f"{median(taken[side]):.1f}" for side in ("lm_eval", "sqtool")] + [f"{ratio:.2f}"]
            left, right = (scores(side, Path(name) / f"{label}-{side}-0") for side in ("lm_eval", "sqtool"))
            assert left.keys() == right.keys()
            different = sum(left[key] != right[key] for key in left)
            print(f"| {label} | {' | '.join(cells)} | {len(left)} | {different} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--items", type=int, default=200, help="items of each task, at most")
    parser.add_argument("--model", type=Path, default=TARGET)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--tasks", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--batch_size", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        by_sqtool(args.model, args.tasks, args.one, args.batch_size)
    else:
        compare(args.model, args.items, args.repeats)


if __name__ == "__main__":
    main()
