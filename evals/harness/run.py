"""lm-eval's tasks on one engine: asked one task after the other, each whole, with records, resumption and a summary."""

from __future__ import annotations

import contextlib
import json
import math
import random
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from evals.harness.catalogue import ANSWER_METRICS, metric_name, version
from evals.harness.loading import FEWSHOT_SEED, Loaded, doc_digest, limit_of, load
from evals.harness.quiet import quiet
from evals.harness.records import Scored, records_of
from evals.records import checked, unchecked, write_records
from evals.run import summarise
from evals.spec import EvaluateSpec
from sqtool.errors import InfrastructureError, SqtoolError
from sqtool.files import canonical_json, sha256_text, write_text
from sqtool.progress import SILENT, Progress

LOG = "lm_eval.log"
RANDOM_SEED, NUMPY_SEED, TORCH_SEED = 0, 1234, 1234
"""lm-eval's defaults, which tasks with random parts of their own rely on."""


def run(
    spec: EvaluateSpec,
    lm: Any,
    *,
    root: Path,
    out: Path,
    key: str,
    progress: Progress = SILENT,
    resume_from: Path | None = None,
    limits: Mapping[str, int] | None = None,
    keep_parts: bool = False,
) -> dict[str, Any]:
    """Ask `lm` (see `evals.harness.models`) every task of `spec.lm_eval`; writes `out/records/<task>.jsonl` and returns
    the tasks' parts of the summary: what `evals.run.evaluate` gives for each task, and

        "lm_eval": {"version", "task_version", "config_sha256", "docs_sha256", "num_fewshot", "output_type",
                    "reported": {metric: lm-eval's own figure}, "diagnostics": {metric: why it is no score of items},
                    "shortened": prompts that were cut to the model's context}

    `key` says under which conditions answers are given. Records of a finished task that `resume_from` kept under the
    same key and with the same configuration and data are taken as they are. `limits` asks of a task only that many
    items, the first ones: which examples a prompt has depends on those before it. With `keep_parts` part files stay
    beside the records.

    Raises what `load` raises, and `EngineError` when the engine fails; then no records of the task at hand exist.
    """
    assert spec.lm_eval is not None
    folder = out / "records"
    folder.mkdir(parents=True, exist_ok=True)
    tasks = load(spec.lm_eval, root)
    lm.ledger.progress = progress
    results: dict[str, Any] = {}
    parts = []
    for loaded in tasks:
        limit = limit_of(spec) if limits is None else limits[loaded.name]
        facts = _facts(loaded, loaded.docs(limit))
        conditions = sha256_text(canonical_json([key, spec.lm_eval.model_dump(mode="json"), facts, version()]))
        name = f"{loaded.name}.jsonl.part"
        kept = _read_part(resume_from / "records" / name, conditions) if resume_from is not None else None
        if kept is None:
            start = time.monotonic()
            scored, reported, shortened = _ask(spec, lm, loaded, limit, out / LOG)
            told = {**facts, "reported": reported, "diagnostics": scored.diagnostics, "shortened": shortened}
            kept = {"records": scored.records, "lm_eval": told, "seconds": round(time.monotonic() - start, 3)}
            resumed = 0
            if shortened:
                progress.note(f"{loaded.name}: {shortened} prompts were cut to the model's context, as lm-eval does it")
        else:
            resumed = len(kept["records"])
        parts.append(folder / name)
        # Until all tasks are finished: an interrupted attempt keeps parts only.
        write_text(parts[-1], canonical_json(checked({"key": conditions, **kept})))
        write_records(folder / f"{loaded.name}.jsonl", kept["records"])
        results[loaded.name] = {
            **summarise(kept["records"]),
            "seconds": kept["seconds"],
            "resumed": resumed,
            "of": len(kept["records"]),
            "lm_eval": {"version": version(), **kept["lm_eval"]},
        }
    for part in () if keep_parts else parts:
        part.unlink()
    return results


def _facts(loaded: Loaded, docs: list[Any]) -> dict[str, Any]:
    return {
        "task_version": loaded.leaf.version,
        "config_sha256": loaded.leaf.digest,
        "docs_sha256": sha256_text("".join(doc_digest(doc) for doc in docs)),
        "num_fewshot": loaded.task.get_config("num_fewshot"),
        "output_type": str(loaded.task.OUTPUT_TYPE),
    }


def _read_part(path: Path, conditions: str) -> dict[str, Any] | None:
    """What an earlier attempt finished under the same conditions."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if unchecked(value).pop("key") != conditions:
            return None
        return {name: value[name] for name in ("records", "lm_eval", "seconds")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _ask(
    spec: EvaluateSpec, lm: Any, loaded: Loaded, limit: int | None, log: Path
) -> tuple[Scored, dict[str, Any], int]:
    """One task through lm-eval: records, lm-eval's own figures, and how many prompts were cut."""
    import numpy as np
    import torch
    from lm_eval.evaluator import evaluate

    assert spec.lm_eval is not None
    wanted = spec.lm_eval
    random.seed(RANDOM_SEED)
    np.random.seed(NUMPY_SEED)
    torch.manual_seed(TORCH_SEED)
    loaded.task.set_fewshot_seed(seed=FEWSHOT_SEED)
    lm.ledger.clear()
    with quiet(log), _named(loaded.name):
        results = evaluate(
            lm=lm,
            task_dict={"tasks": {loaded.name: loaded.task}},
            limit=limit,
            bootstrap_iters=0,  # errors of its means are the gate's business
            log_samples=True,
            system_instruction=wanted.system_instruction,
            apply_chat_template=wanted.apply_chat_template,
            fewshot_as_multiturn=wanted.multiturn,
            confirm_run_unsafe_code=wanted.confirm_run_unsafe_code,
        )
    scored = records_of(loaded, results["samples"][loaded.name], lm.ledger, lm.max_gen_toks)
    reported = _reported(results["results"][loaded.name])
    _agree(loaded.name, scored, reported)
    return scored, reported, lm.ledger.shortened


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """What lm-eval or a task's own code raises, with the task's name; our own errors as they are."""
    try:
        yield
    except (SqtoolError, OSError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which says what to do by itself
            raise
        text = " ".join(str(error).split()) or "no message"
        raise InfrastructureError(
            f"the lm-eval task {name} failed ({type(error).__name__}: {text})",
            remedy=f"{LOG} beside the records says more; `lm_eval validate --tasks {name}` checks the task's file.",
        ) from error


def _reported(result: Mapping[str, Any]) -> dict[str, float | str]:
    """lm-eval's figures by our names, without its standard errors. JSON has no NaN: those are texts."""
    found: dict[str, float | str] = {}
    for name, value in result.items():
        metric, comma, filter_name = name.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        with contextlib.suppress(TypeError, ValueError):
            number = float(value)
            found[metric_name(metric, filter_name)] = number if math.isfinite(number) else str(number)
    return found


def _agree(name: str, scored: Scored, reported: Mapping[str, float | str]) -> None:
    """The gate judges records and people quote lm-eval's figures: both must be the same."""
    columns: dict[str, list[float]] = {}
    for record in scored.records:
        for metric, score in record["scores"].items():
            columns.setdefault(metric, []).append(score)
    for metric, column in columns.items():
        own = reported.get(metric)
        if isinstance(own, float) and not math.isclose(fmean(column), own, rel_tol=1e-9, abs_tol=1e-12):
            raise InfrastructureError(
                f"{name}: lm-eval reports {metric} {own}, and its samples average {fmean(column)}",
                remedy="Its records would say something else than lm-eval; please report that, with the task.",
            )
        if own is None and metric not in ANSWER_METRICS:
            raise InfrastructureError(f"{name}: lm-eval has samples of {metric} and reports none")
