"""Whether drift's path (transformers) and the serving engine compute the same: log-probabilities of the same tokens.

The engine is asked within its life (`probe`, called by `evals.run.evaluate`), the comparison is made while drift holds
the logits anyway (`EngineCheck`).
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evals.client import COMPLETIONS, Endpoint, each, request
from evals.engines.base import Limits
from evals.items import take
from evals.spec import DriftCheckSpec, EvaluateSpec
from evals.texts import Text
from sqtool.errors import DataError, SqtoolError
from sqtool.files import canonical_json, read_jsonl, write_text
from sqtool.progress import SILENT, Progress

if TYPE_CHECKING:
    import httpx

FILE = "engine_logprobs.jsonl"
AT_ONCE = 4
"""Requests in flight: the engine holds float32 log-probabilities of whole prompts over the whole vocabulary."""
Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]
Ints = np.ndarray[Any, np.dtype[np.int64]]


def probe(
    spec: EvaluateSpec, texts: Callable[[], Sequence[Text]], out: Path, progress: Progress = SILENT
) -> Callable[[Endpoint], None] | None:
    """What `evaluate` is to ask before its server ends: log-probabilities into `out/FILE`; None when nothing.

    An engine that cannot say them is no error: the file then holds the reason, and drift says that it is unchecked.
    """
    if spec.drift is None or spec.drift.check is None:
        return None
    check = spec.drift.check

    def ask(endpoint: Endpoint) -> None:
        chosen = take(list(texts()), check.items)
        limits = Limits(min(AT_ONCE, spec.concurrency), spec.request_timeout, spec.retries)
        with progress.task("drift: the engine's log-probabilities", total=len(chosen)):
            try:
                records = engine_logprobs(endpoint, [t.tokens[: check.max_length] for t in chosen], check.top_k, limits)
            except SqtoolError as error:
                progress.note(f"drift is not checked against the engine: {error.message}")
                write_text(out / FILE, canonical_json({"error": error.message}) + "\n")
                return
        lines = [{"id": text.id, **record} for text, record in zip(chosen, records, strict=True)]
        write_text(out / FILE, "".join(canonical_json(line) + "\n" for line in lines))

    return ask


def engine_logprobs(
    endpoint: Endpoint, prompts: Sequence[Sequence[int]], k: int, limits: Limits
) -> list[dict[str, Any]]:
    """For each prompt (token ids) {"tokens": ids, "ids": [positions][1 + k], "logprobs": [positions][1 + k]}.

    From vLLM's `prompt_logprobs`: for every token but the first, that token and then the k most likely ones, with their
    natural log-probabilities. Raises `EngineError` when the server does not answer or does not know them.
    """

    found: dict[int, dict[str, Any]] = {}

    async def one(client: httpx.AsyncClient, at: int) -> dict[str, Any]:
        tokens = list(prompts[at])
        body = {"model": endpoint.model, "prompt": tokens, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": k}
        parse = partial(_parsed, tokens=tokens, k=k)
        return await request(
            client, endpoint, COMPLETIONS, body, parse, f"{at} of drift (prompt log-probabilities)", limits
        )

    asyncio.run(each(endpoint, range(len(prompts)), limits, one, found.__setitem__))
    return [found[at] for at in range(len(prompts))]


def _parsed(value: Any, tokens: list[int], k: int) -> dict[str, Any]:
    try:
        positions = value["choices"][0]["prompt_logprobs"]
        if len(positions) != len(tokens):
            raise ValueError(f"{len(positions)} positions for {len(tokens)} tokens")
        ids, logs = [], []
        for token, entries in zip(tokens[1:], positions[1:], strict=True):
            best = sorted((e["rank"], int(i)) for i, e in entries.items() if e["rank"] <= k)
            row = [token, *(i for _, i in best)]
            if len(row) != k + 1:
                raise ValueError(f"{len(best)} of the {k} most likely tokens")
            ids.append(row)
            logs.append([round(float(entries[str(i)]["logprob"]), 6) for i in row])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"prompt log-probabilities are not vLLM's ({type(error).__name__}: {error})") from None
    return {"tokens": tokens, "ids": ids, "logprobs": logs}


class EngineCheck:
    """The engine's records of one side, and how far transformers is from them."""

    def __init__(self, path: Path) -> None:
        self.problem = ""
        # Several tasks may have an item of the same id; the tokens tell them apart.
        self._known: dict[str, list[dict[str, Any]]] = {}
        self._gaps: list[Floats] = []
        self._short: list[Floats] = []
        self._texts = 0
        try:
            for line, row in read_jsonl(path):
                if "error" in row:
                    self.problem = str(row["error"])
                    return
                if not {"id", "tokens", "ids", "logprobs"} <= set(row):
                    raise DataError(path, "expected id, tokens, ids and logprobs", line=line)
                self._known.setdefault(str(row["id"]), []).append(row)
        except DataError as error:
            self.problem = f"the engine was not asked ({error.message})"

    def asked(self, group: Sequence[Text]) -> tuple[Ints, Floats] | None:
        """For the predicting positions of these texts, one text after the other: token ids [positions, 1 + k] and what
        the engine says of them; id -1 where it was not asked. None when it was asked for none of them."""
        rows = [self._row(text) for text in group]
        width = max((len(row["ids"][0]) for row in rows if row and row["ids"]), default=0)
        if not width:
            return None
        counts = [len(text.tokens) - 1 for text in group]
        ids = np.full((sum(counts), width), -1, dtype=np.int64)
        logs = np.zeros(ids.shape, dtype=np.float32)
        start = 0
        for row, count in zip(rows, counts, strict=True):
            if row:
                stop = start + len(row["ids"])
                ids[start:stop], logs[start:stop] = row["ids"], row["logprobs"]
                self._texts += 1
            start += count
        return ids, logs

    def _row(self, text: Text) -> dict[str, Any] | None:
        """What the engine was asked of these tokens."""
        for row in self._known.get(text.id, ()):
            if array("i", row["tokens"]) == array("i", text.tokens[: len(row["tokens"])]):
                return row
        return None

    def add(self, ids: Ints, engine: Floats, ours: Floats, best: Floats) -> None:
        """Rows as `asked` gives them, transformers' log-probabilities of the same ids, and its largest [positions]."""
        held = ids[:, 0] >= 0
        self._gaps.append(np.abs(ours[held] - engine[held]))
        self._short.append((best - ours[:, 1])[held])

    def summary(self, spec: DriftCheckSpec) -> dict[str, Any]:
        """{"texts", "positions", "logprob_p50", "logprob_p99", "logprob_max" (absolute difference of the token that
        follows, nats), "top_k_p99" (the same of the engine's k most likely), "top1_agreement", "top1_near", "passed"},
        or {"problem", "passed": None} when there is nothing to compare with.

        Engines round logits to 16 bits, so that tokens nearly as likely as one another may change places there.
        `top1_near` counts positions where the engine's most likely token is within the tolerance of transformers'."""
        gaps = np.concatenate(self._gaps) if self._gaps else np.zeros((0, 1))
        if not len(gaps):
            return {"problem": self.problem or "the engine was asked other tokens", "passed": None}
        if not np.isfinite(gaps).all():
            return {"problem": "one of the two gives NaN or infinity", "passed": False}
        short = np.concatenate(self._short)
        near = float((short <= spec.tolerance).mean())
        p50, p99 = (float(q) for q in np.quantile(gaps[:, 0], [0.5, 0.99]))
        return {
            "texts": self._texts,
            "positions": len(gaps),
            "logprob_p50": p50,
            "logprob_p99": p99,
            "logprob_max": float(gaps[:, 0].max()),
            "top_k_p99": float(np.quantile(gaps[:, 1:], 0.99)),
            "top1_agreement": float((short == 0).mean()),
            "top1_near": near,
            "passed": p99 <= spec.tolerance and near >= spec.min_top1,
        }
