"""The evaluation's items, answered by an arm that speculates: same tasks, same scorers, same requests."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, cast

from evals.client import Endpoint
from evals.engines.openai import OpenAiEngine
from evals.engines.vllm import VllmEngine, vllm_endpoint
from evals.harness.stage import ask_lm_eval
from evals.records import answer_key
from evals.run import run_task, spread
from evals.spec import EvaluateSpec
from evals.tasks import load_tasks
from sqtool.files import canonical_json, sha256_text
from sqtool.progress import Progress
from sqtool.speculate.arms import Arm
from sqtool.speculate.remote import Server, UrlServer
from sqtool.speculate.store import PART, QUALITY, ArmFiles

if TYPE_CHECKING:
    from evals.server import VllmServer


class RunningVllm(VllmEngine):
    """A server that is up already, as an engine that answers tasks; leaving the context leaves it running."""

    def __init__(self, server: VllmServer) -> None:
        self.server = server
        self.retried: Counter[str] = Counter()
        self.endpoint = vllm_endpoint(server, self.retried)

    def __enter__(self) -> RunningVllm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class RunningElsewhere(OpenAiEngine):
    """The same with a server that runs already; `model` is the checkpoint that it is declared to serve."""

    def __init__(self, server: UrlServer, model: Path) -> None:
        self.spec, self.model, self._facts = server.spec, model, server.facts()
        self.retried: Counter[str] = Counter()
        self.endpoint = Endpoint(
            server.base_url,
            server.api_key,
            server.served_name,
            server.require_alive,
            vllm=server.vllm,
            retried=self.retried,
        )

    def __enter__(self) -> RunningElsewhere:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


def answer_tasks(
    arm: Arm,
    server: Server,
    files: ArmFiles,
    evaluate: EvaluateSpec,
    *,
    items: int | None,
    root: Path,
    progress: Progress,
    seed: int,
    earlier: Path | None,
) -> None:
    """Records of all tasks in `quality/<task>.jsonl.part` (which sealing makes quality/records/<task>.jsonl). With
    `items` so many over all tasks, and none of lm-eval's. `earlier` is this arm's folder of an interrupted attempt."""
    engine: RunningVllm | RunningElsewhere
    if isinstance(server, UrlServer):
        engine = RunningElsewhere(server, arm.model)
    else:
        engine = RunningVllm(cast("VllmServer", server))
    out = files.path / QUALITY
    tasks = load_tasks(evaluate, root)
    if items is not None:
        tasks = spread(tasks, items)
    kept = None if earlier is None else earlier / QUALITY
    for task in tasks:
        if (out / f"{task.name}.jsonl{PART}").is_file():
            continue
        key = answer_key(arm.model, arm.engine, task.generation, seed, root=root)
        key = sha256_text(canonical_json([key, arm.config()]))
        run_task(
            task, engine, evaluate, key=key, out=out, progress=progress, seed=seed, resume_from=kept
        )  # fmt: skip
        _hold(out)
    if items is None and evaluate.lm_eval is not None:
        key = answer_key(arm.model, arm.engine, evaluate.generation, seed, root=root)
        key = sha256_text(canonical_json([key, arm.config()]))
        ask_lm_eval(
            evaluate,
            arm.engine,
            engine,
            model=arm.model,
            root=root,
            out=out,
            key=key,
            progress=progress,
            seed=seed,
            resume_from=kept,
        )
        _hold(out)


def _hold(out: Path) -> None:
    """Finished records out of the way of the next attempt's parts, under a name that a failed stage keeps."""
    for path in sorted((out / "records").glob("*.jsonl")):
        os.replace(path, out / (path.name + PART))
