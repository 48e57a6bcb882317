"""The four arms: baseline, quantized, speculative, both; each a real `vllm serve`, all on the same frozen traffic."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.engine_env import resolve_env
from evals.server import VllmServer
from evals.spec import EngineSpec
from sqtool.errors import DataError, EngineError, UsageError
from sqtool.files import read_json, write_json, write_text
from sqtool.progress import Progress, Task
from sqtool.speculate.client import Answer, send_block
from sqtool.speculate.compare import acceptance_change, agreements, interaction
from sqtool.speculate.counters import Counters, fetch_metrics, read_settled, reports_per_request
from sqtool.speculate.spec import SpeculateSpec
from sqtool.speculate.summary import ArmResult, BlockResult, summarize
from sqtool.speculate.traffic import Traffic, choose, load_requests

SCHEMA = "sqtool.speculate/1"
PER_REQUEST_FLAG = ("--per-request-spec-decode-metrics", "summary")


@dataclass(frozen=True)
class Arm:
    """One server configuration."""

    name: str
    model: Path
    speculates: bool


def arms_of(baseline: Path, candidate: Path) -> tuple[Arm, ...]:
    """The four arms in the order run."""
    return (
        Arm("baseline", baseline, False),
        Arm("quantized", candidate, False),
        Arm("speculative", baseline, True),
        Arm("both", candidate, True),
    )


def preflight(spec: SpeculateSpec, *, target: Path, draft: Path | None, root: Path) -> None:
    """What can be known to fail before a server starts: no draft, another vocabulary, no traffic. Raises then."""
    if not spec.enabled:
        return
    if not (root / spec.traffic).is_file():
        raise DataError(
            root / spec.traffic,
            "no such traffic file (speculate.traffic)",
            remedy="Give a JSONL of requests, or set `speculate: {enabled: false}`.",
        )
    if spec.method != "draft_model":
        return
    other = "Give `draft:` in the recipe, or set `speculate: {method: ngram}` or `{enabled: false}`."
    if draft is None:
        raise UsageError("speculate.method is draft_model, and the recipe has no draft model", remedy=other)
    sizes = [read_json(folder / "config.json").get("vocab_size") for folder in (target, draft)]
    if sizes[0] != sizes[1]:
        raise UsageError(
            f"the draft's vocabulary has {sizes[1]} tokens and the target's {sizes[0]}; they must be the same",
            remedy=other,
        )
    tokens = [_vocabulary(folder) for folder in (target, draft)]
    if None not in tokens and tokens[0] != tokens[1]:
        raise UsageError(
            "draft and target have different tokenizers, so drafted tokens mean something else", remedy=other
        )


def _vocabulary(folder: Path) -> Any:
    """Token -> id of a fast tokenizer, added tokens included; None where the folder has no tokenizer.json."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    content = read_json(path)
    added = {token["content"]: token["id"] for token in content.get("added_tokens") or ()}
    return (content.get("model") or {}).get("vocab"), added


def speculate(
    spec: SpeculateSpec,
    engine: EngineSpec,
    *,
    baseline: Path,
    candidate: Path,
    draft: Path | None,
    root: Path,
    out: Path,
    progress: Progress,
    seed: int,
) -> dict[str, Any]:
    """Run the four arms and write speculate.json, traffic.jsonl and arms/<arm>/{requests.jsonl, server.log} to `out`.

    Returns what speculate.json holds. Raises `EngineError` naming the arm and its log when a server does not start,
    dies, or answers nothing; `UsageError` and `DataError` before any server starts.
    """
    for target in (baseline, candidate):
        preflight(spec, target=target, draft=draft, root=root)
    per_request = reports_per_request(resolve_env(engine, root))
    requests = load_requests(root / spec.traffic, spec.max_tokens)
    traffic = choose(requests, spec.requests, spec.warmup, seed, single_kind_blocks=not per_request)
    write_text(out / "traffic.jsonl", traffic.to_jsonl())
    if not per_request:
        progress.note("speculate: this vLLM reports no acceptance per request; counting it around blocks of one kind")
    results: dict[str, ArmResult] = {}
    for arm in arms_of(baseline, candidate):
        extra: list[str] = []
        if arm.speculates:
            config = spec.speculative_config(str(draft.resolve()) if draft else None)
            extra = ["--speculative-config", json.dumps(config), *(PER_REQUEST_FLAG if per_request else ())]
        results[arm.name] = run_arm(arm, spec, engine, traffic, extra, root=root, out=out, progress=progress)
    summaries = {name: summarize(result) for name, result in results.items()}
    report = {
        "schema": SCHEMA,
        "method": spec.method,
        "speculative_config": spec.speculative_config(draft.name if draft else None),
        "traffic": {
            "source": spec.traffic,
            "sha256": traffic.sha256,
            "requests": len(traffic.requests),
            "warmup": len(traffic.warmup),
            "blocks": [len(block) for block in traffic.blocks],
            "single_kind_blocks": traffic.single_kind_blocks,
            "concurrency": spec.concurrency,
            "max_tokens": spec.max_tokens,
        },
        "seed": seed,
        "arms": summaries,
        "agreement": agreements(results),
        "interaction": interaction(summaries),
        "acceptance_change": acceptance_change(results),
    }
    write_json(out / "speculate.json", report)
    return report


def run_arm(
    arm: Arm,
    spec: SpeculateSpec,
    engine: EngineSpec,
    traffic: Traffic,
    extra_args: Sequence[str],
    *,
    root: Path,
    out: Path,
    progress: Progress,
) -> ArmResult:
    """Start the arm's server, send warm-up and blocks, write requests.jsonl; `EngineError` names arm and log."""
    if engine.generation_config == "auto":
        # Requests of the traffic are greedy, and say nothing of penalties that a checkpoint may bring.
        engine = engine.model_copy(update={"generation_config": "vllm"})
    folder = out / "arms" / arm.name
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "server.log"
    result = ArmResult(arm.name, arm.model, arm.speculates)
    try:
        with (
            VllmServer(arm.model, engine, log=log, extra_args=extra_args, root=root, progress=progress) as server,
            progress.task(f"speculate: {arm.name}", total=len(traffic.requests)) as task,
        ):
            _measure(server, spec, traffic, result, task)
            result.engine = server.facts()
    except EngineError as error:
        remedy = error.remedy if str(log) in error.remedy else f"{error.remedy} The whole log is in {log}.".strip()
        raise EngineError(f"speculate, arm {arm.name!r}: {error.message}", remedy=remedy) from error
    finally:
        lines = (json.dumps(answer.to_dict(), ensure_ascii=False) for answer in result.answers)
        write_text(folder / "requests.jsonl", "".join(line + "\n" for line in lines))
    return result


def _measure(server: VllmServer, spec: SpeculateSpec, traffic: Traffic, result: ArmResult, task: Task) -> None:
    began = time.perf_counter()
    warm: list[Answer] = []
    task.describe(f"speculate: {result.name} (warm-up)")
    _send(server, spec, traffic.warmup, -1, began, warm.append)
    _check(server, warm)
    task.describe(f"speculate: {result.name}")

    def keep(answer: Answer) -> None:
        result.answers.append(answer)
        task.advance()

    before = _counters(server)
    for number, block in enumerate(traffic.blocks):
        seconds = _send(server, spec, block, number, began, keep)
        _check(server, [a for a in result.answers if a.block == number])
        after = _counters(server)
        kind = block[0].kind if traffic.single_kind_blocks else None
        result.blocks.append(BlockResult(seconds, after.since(before), kind))
        before = after
    place = {request.id: at for at, request in enumerate(traffic.requests)}
    result.answers.sort(key=lambda answer: place[answer.id])


def _send(
    server: VllmServer, spec: SpeculateSpec, requests: Sequence[Any], block: int, began: float, keep: Any
) -> float:
    return send_block(
        requests,
        block=block,
        base_url=server.base_url,
        api_key=server.api_key,
        model=server.served_name,
        concurrency=spec.concurrency,
        timeout=spec.request_timeout,
        began=began,
        on_answer=keep,
    )


def _counters(server: VllmServer) -> Counters:
    try:
        return read_settled(lambda: fetch_metrics(server.base_url, server.api_key))
    except OSError as error:
        raise server.failure(f"/metrics does not answer ({error})") from error


def _check(server: VllmServer, answers: Sequence[Answer]) -> None:
    """A failed request is a measurement; a dead server, or one that answers nothing at all, is not."""
    failed = [answer for answer in answers if not answer.ok]
    if not failed:
        return
    server.require_alive()
    if not server.healthy():
        raise server.failure(f"the server stopped answering ({failed[0].error})")
    if len(failed) == len(answers):
        raise server.failure(f"every one of {len(answers)} requests failed, the first with: {failed[0].error}")
