"""Does choosing calibration conversations by coverage beat choosing them at random, for a quarter of the tokens?

    python benchmarks/calibration/selection.py [--seeds 3] [--tokens 16384] [--methods gptq4,awq4] [--items 150]

For each seed a different half of the reference pool is the pool, the same for all arms: random for the whole budget of
tokens, and random, stratified and coverage for a quarter of it (the latter two matched to the reference traffic). Each
set quantizes the reference target; the candidate answers `--items` of each shipped test file, evenly over the file.
Answers are scored teacher-forced in transformers: an answer is exact when every one of its tokens is the most likely
one, which is what greedy decoding would give; KL is the mean divergence from the bf16 model at the answers' tokens, in
nats. No engine is started. Prints every run, then means over seeds and the paired differences from random at a quarter.

What would count: coverage at a quarter better than random at a quarter in every seed, by KL and by recall.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibrate.build import build
from calibrate.conversation import as_record
from calibrate.render import load_tokenizer, render
from calibrate.spec import CalibrateSpec
from quantize.run import quantize
from quantize.spec import QuantizeSpec
from sqtool.files import read_jsonl
from sqtool.progress import SILENT

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "artifacts/reference/target"
DATA = ROOT / "artifacts/reference/data"
TESTS = ("recall", "tasks", "tool_calls")
METHODS: dict[str, list[dict[str, Any]]] = {
    "gptq4": [{"gptq": {"scheme": "W4A16_ASYM", "actorder": "static", "dampening_frac": 0.001}}],
    "awq4": [{"awq": {"scheme": "W4A16_ASYM", "n_grid": 10}}],
}
ARMS = {"random": 1.0, "random/4": 0.25, "stratified/4": 0.25, "coverage/4": 0.25}
KEYS = ("kl", *TESTS)
LONGEST = 512
"""Questions of more tokens are left out: they would take most of the time."""


def half(seed: int, path: Path) -> None:
    """Write the half of the pool that `seed` draws."""
    lines = (DATA / "calibration.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    drawn = sorted(random.Random(f"half {seed}").sample(range(len(lines)), len(lines) // 2))
    path.write_text("".join(lines[n] for n in drawn), encoding="utf-8")


def questions(items: int) -> list[tuple[str, list[int], int]]:
    """(test, token ids of question and right answer, where the answer starts), shortest first."""
    tokenizer = load_tokenizer(MODEL)
    made = []
    for test in TESTS:
        every = [item for _, item in read_jsonl(DATA / "test" / f"{test}.jsonl")]
        for number in range(min(items, len(every))):
            item = every[number * len(every) // min(items, len(every))]
            record = as_record(item)
            if len(record["messages"]) == len(item["messages"]):
                continue  # no answer is expected
            asked = {**record, "messages": record["messages"][:-1]}
            prompt = tokenizer.apply_chat_template(
                asked["messages"], tools=asked.get("tools"), tokenize=True, add_generation_prompt=True, return_dict=True
            )["input_ids"]
            ids = render(tokenizer, record)
            if len(ids) > LONGEST:
                continue
            ends = len(ids) - ids[::-1].index(tokenizer.eos_token_id)  # a newline of the template's comes behind
            made.append((test, ids[:ends], len(prompt)))
    return sorted(made, key=lambda q: len(q[1]))


def answers(
    model: Any, asked: list[tuple[str, list[int], int]], batch: int = 16
) -> Iterator[tuple[str, torch.Tensor, Any]]:
    """(test, log-probabilities [answer tokens, vocabulary] in float16, right tokens) of each question."""
    import torch

    for at in range(0, len(asked), batch):
        group = asked[at : at + batch]
        longest = max(len(ids) for _, ids, _ in group)
        rows = torch.zeros(len(group), longest, dtype=torch.long)
        for row, (_, ids, _) in zip(rows, group, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        # Padding on the right: what stands before a token does not see what stands behind it.
        with torch.inference_mode():
            logits = model(input_ids=rows, use_cache=False).logits
        for scores, (test, ids, start) in zip(logits, group, strict=True):
            behind = scores[start - 1 : len(ids) - 1].float().log_softmax(-1)
            yield test, behind.half(), torch.tensor(ids[start:])


def score(folder: Path, asked: list[tuple[str, list[int], int]], base: list[Any]) -> dict[str, float]:
    """Mean KL divergence from `base` at the answers' tokens, and the share of exact answers of each test."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    exact: dict[str, list[bool]] = defaultdict(list)
    divergences = []
    for (test, behind, right), before in zip(answers(model, asked), base, strict=True):
        exact[test].append(bool((behind.argmax(-1) == right).all()))
        p = before.float()
        divergences.append((p.exp() * (p - behind.float())).sum(-1))
    shares = {test: statistics.fmean(found) for test, found in exact.items()}
    return {"kl": float(torch.cat(divergences).mean()), **shares}


def run(arm: str, method: str, seed: int, tokens: int, folder: Path, asked: Any, base: Any) -> dict[str, float]:
    """Build the arm's set, quantize with it, score; one printed row."""
    selection = arm.partition("/")[0]
    pool, out = folder / f"half-{seed}.jsonl", folder / f"{method}-{seed}-{arm.replace('/', '-')}"
    if not pool.is_file():
        half(seed, pool)
    values: dict[str, Any] = {
        "sources": [{"path": str(pool)}],
        "target_tokens": round(tokens * ARMS[arm]),
        "selection": selection,
        "coverage": {"refuse": "never"},
    }
    if selection != "random":
        values["match"] = str(DATA / "traffic.jsonl")
    out.mkdir()
    started = time.monotonic()
    built = build(CalibrateSpec.model_validate(values), model=MODEL, seed=seed, out=out, progress=SILENT)
    spec = QuantizeSpec.model_validate({"methods": METHODS[method]})
    quantize(spec, model=MODEL, calibration=out, seed=seed, out=out, progress=SILENT)
    found = score(out / "checkpoint", asked, base)
    shutil.rmtree(out)
    print(
        f"| {method} | {seed} | {arm} | {built['samples']} | {built['tokens']} | {found['kl']:.4f} | "
        + " | ".join(f"{100 * found[test]:.1f}" for test in TESTS)
        + f" | {time.monotonic() - started:.0f} |",
        flush=True,
    )
    return found


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--items", type=int, default=150)
    parser.add_argument("--methods", default="gptq4,awq4")
    arguments = parser.parse_args()
    import torch
    from transformers import AutoModelForCausalLM

    asked = questions(arguments.items)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, local_files_only=True).eval()
    kept = list(answers(model, asked))
    base = [behind for _, behind, _ in kept]
    del model
    bf16 = {t: statistics.fmean(bool((b.argmax(-1) == r).all()) for n, b, r in kept if n == t) for t in TESTS}
    shown = ", ".join(f"{test} {100 * share:.1f}" for test, share in bf16.items())
    print(f"bf16, exact in %: {shown}; {len(asked)} items\n")
    print("| method | seed | arm | conversations | tokens | KL | recall | tasks | tool_calls | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    results: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        for method in arguments.methods.split(","):
            for seed in range(arguments.seeds):
                for arm in ARMS:
                    found = run(arm, method, seed, arguments.tokens, Path(name), asked, base)
                    results[method, arm].append(found)
    print("\nMeans over seeds; in brackets the difference from random/4 in each seed (KL: less is better).\n")
    print("| method | arm | KL | recall | tasks | tool_calls |")
    print("| --- | --- | --- | --- | --- | --- |")
    for (method, arm), runs in results.items():
        cells = []
        for key in KEYS:
            scale, digits = (1, 4) if key == "kl" else (100, 1)
            mean = statistics.fmean(scale * r[key] for r in runs)
            pairs = zip(runs, results[method, "random/4"], strict=True)
            apart = ", ".join(f"{scale * (r[key] - q[key]):+.{digits}f}" for r, q in pairs)
            cells.append(f"{mean:.{digits}f}" + ("" if arm == "random/4" else f" ({apart})"))
        print(f"| {method} | {arm} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
