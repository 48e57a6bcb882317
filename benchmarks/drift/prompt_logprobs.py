"""The same figures through vLLM: log-probabilities of the whole vocabulary for every token of a prompt, over HTTP.

    python -m benchmarks.drift.prompt_logprobs --candidate CHECKPOINT [--texts 4] [--items 64]

vLLM is started with `--max-logprobs -1` and asked `prompt_logprobs: -1` for a few texts of median length, with each of
both models; KL is then computed from the answers. That costs the same for each token, so wall seconds a position of the
few stand for all, and are compared with those of drift over all texts: baseline states, drift and the loading of both
models, while for vLLM neither the start nor the first request counts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.drift.pair import ROOT, TARGET
from evals.client import Endpoint
from evals.drift import baseline_states, drift, kept_texts, texts_of
from evals.server import VllmServer
from evals.spec import DriftSpec, EngineSpec, EvaluateSpec
from evals.texts import Text


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


def through_vllm(model: Path, texts: list[Text], vocab: int, folder: Path) -> tuple[list[np.ndarray[Any, Any]], float]:
    """Log-probabilities of the texts, and seconds without the engine's start and its first answer."""
    with VllmServer(
        model, EngineSpec(extra_args=("--max-logprobs", "-1")), log=folder / "vllm.log", root=ROOT
    ) as server:
        endpoint = Endpoint(server.base_url, server.api_key, server.served_name)
        log_probabilities(endpoint, texts[0], vocab)
        start = time.perf_counter()
        found = [log_probabilities(endpoint, text, vocab) for text in texts]
        return found, time.perf_counter() - start


def main() -> None:
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
        start = time.perf_counter()
        kept = baseline_states(spec, model=TARGET, texts=texts_of(spec, TARGET, ROOT), out=states)
        ours = drift(spec, baseline=TARGET, candidate=args.candidate, states=states, out=folder)
        seconds = time.perf_counter() - start
        each = seconds / kept["positions"]
        texts = sorted(kept_texts(states), key=lambda text: len(text.tokens))
        middle = texts[len(texts) // 2 :][: args.texts]
        positions = sum(len(text.tokens) - 1 for text in middle)
        vocab = json.loads((states / "states.json").read_text())["vocab"]
        base, base_seconds = through_vllm(TARGET, middle, vocab, folder)
        cand, cand_seconds = through_vllm(args.candidate, middle, vocab, folder)
        start = time.perf_counter()
        kl = np.concatenate([(np.exp(p) * (p - q)).sum(-1) for p, q in zip(base, cand, strict=True)])
        theirs = (base_seconds + cand_seconds + time.perf_counter() - start) / positions
        lines = {row["id"]: row for row in map(json.loads, (folder / "drift.jsonl").read_text().splitlines())}
        same = sum(lines[t.id]["kl_mean"] * lines[t.id]["positions"] for t in middle) / positions
    print("| path | positions | s | ms a position |\n|---|---|---|---|")
    print(f"| drift (loading included) | {kept['positions']} | {seconds:.1f} | {1e3 * each:.3f} |")
    print(f"| vLLM prompt_logprobs | {positions} | {theirs * positions:.1f} | {1e3 * theirs:.3f} |")
    print(f"ratio: {theirs / each:.1f} (target: at least 10)")
    print(f"mean KL of these {len(middle)} texts: {same:.5f} by drift, {kl.mean():.5f} through vLLM; ", end="")
    print(f"all texts: {ours['all']['kl_mean']:.5f}")


if __name__ == "__main__":
    main()
