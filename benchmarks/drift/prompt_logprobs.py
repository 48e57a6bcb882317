"""The same figures through vLLM: log-probabilities of the whole vocabulary for every token of a prompt, over HTTP.

    python -m benchmarks.drift.prompt_logprobs --candidate CHECKPOINT [--texts 4] [--items 64]

vLLM is started with `--max-logprobs -1` and asked `prompt_logprobs: -1` for a few texts of median length, with each of
both models; KL is then computed from the answers. That costs the same for each token, so seconds a position of the few
stand for all, and are compared with those of drift over all texts: baseline states, drift and the loading of both
models, while for vLLM neither the start nor the first request counts. CPU seconds are those of this process and of the
server's whole process tree; they say more than wall seconds on a machine that others use. Drift runs on one thread.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.drift.pair import ROOT, TARGET, cpu_and_wall
from evals.client import Endpoint
from evals.drift import baseline_states, drift, kept_texts, texts_of
from evals.server import VllmServer
from evals.spec import DriftSpec, EngineSpec, EvaluateSpec
from evals.texts import Text

Seconds = tuple[float, float]


def log_probabilities(endpoint: Endpoint, text: Text, vocab: int) -> np.ndarray[Any, Any]:
    """float32 [positions, vocab] as the server says them."""
    import httpx

    body = {"model": endpoint.model, "prompt": list(text.tokens), "max_tokens": 1, "prompt_logprobs": -1}
    answer = httpx.post(
        f"{endpoint.base_url}/v1/completions",
        json=body,
        headers={"Authorization": f"Bearer {endpoint.api_key}"},
        timeout=600,
        trust_env=False,
    )
    answer.raise_for_status()
    rows = np.full((len(text.tokens) - 1, vocab), -np.inf, dtype=np.float32)
    for row, entries in zip(rows, json.loads(answer.content)["choices"][0]["prompt_logprobs"][1:], strict=True):
        for token, entry in entries.items():
            row[int(token)] = entry["logprob"]
    return rows


def cpu_seconds() -> float:
    """User and system time of this process and of everything that it started and that still runs."""
    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return sum(t.user + t.system for t in times)


def through_vllm(
    model: Path, texts: list[Text], vocab: int, folder: Path
) -> tuple[list[np.ndarray[Any, Any]], Seconds]:
    """Log-probabilities of the texts; CPU and wall seconds without the engine's start and its first answer."""
    engine = EngineSpec(extra_args=("--max-logprobs", "-1"))
    with VllmServer(model, engine, log=folder / "vllm.log", root=ROOT) as server:
        endpoint = Endpoint(server.base_url, server.api_key, server.served_name)
        log_probabilities(endpoint, texts[0], vocab)
        cpu, wall = cpu_seconds(), time.perf_counter()
        found = [log_probabilities(endpoint, text, vocab) for text in texts]
        return found, (cpu_seconds() - cpu, time.perf_counter() - wall)


def main() -> None:
    import torch

    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidate", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=4)
    parser.add_argument("--items", type=int, default=64)
    args = parser.parse_args()
    spec = EvaluateSpec(drift=DriftSpec(items=args.items, prose_items=args.items // 4, check=None))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        states = folder / "states"
        states.mkdir()
        every = texts_of(spec, TARGET, ROOT)

        def both() -> None:
            found.append(baseline_states(spec, model=TARGET, texts=every, out=states))
            found.append(drift(spec, baseline=TARGET, candidate=args.candidate, states=states, out=folder))

        found: list[dict[str, Any]] = []
        ours = cpu_and_wall(both)
        count = found[0]["positions"]
        texts = sorted(kept_texts(states), key=lambda text: len(text.tokens))
        middle = texts[len(texts) // 2 :][: args.texts]
        positions = sum(len(text.tokens) - 1 for text in middle)
        vocab = json.loads((states / "states.json").read_text())["vocab"]
        base, base_s = through_vllm(TARGET, middle, vocab, folder)
        cand, cand_s = through_vllm(args.candidate, middle, vocab, folder)
        kl = np.concatenate([(np.exp(p) * (p - q)).sum(-1) for p, q in zip(base, cand, strict=True)])
        theirs = (base_s[0] + cand_s[0], base_s[1] + cand_s[1])
        lines = {row["id"]: row for row in map(json.loads, (folder / "drift.jsonl").read_text().splitlines())}
        same = sum(lines[t.id]["kl_mean"] * lines[t.id]["positions"] for t in middle) / positions
    rows = [("drift", count, ours), ("vLLM prompt_logprobs", positions, theirs)]
    print("| path | positions | CPU s | wall s | CPU ms a position | wall ms a position |\n|---|---|---|---|---|---|")
    for name, n, (cpu, wall) in rows:
        print(f"| {name} | {n} | {cpu:.1f} | {wall:.1f} | {1e3 * cpu / n:.2f} | {1e3 * wall / n:.2f} |")
    cpu, wall = (b / positions / (a / count) for a, b in zip(ours, theirs, strict=True))
    print(f"ratio: {cpu:.1f} of CPU time, {wall:.1f} of wall time (target: at least 10)")
    print(f"mean KL of these {len(middle)} texts: {same:.5f} by drift, {kl.mean():.5f} through vLLM; ", end="")
    print(f"all texts: {found[1]['all']['kl_mean']:.5f}")


if __name__ == "__main__":
    main()
