"""Does coverage say beforehand where quality will be lost? Hold a stratum out of calibration, quantize, look.

    python -m benchmarks.calibration.causal [--seeds 2] [--method gptq4|awq4] [--only STRATUM] [--table]

Every run has the same number of calibration tokens: those of a stratum that is held out are replaced by the others'.
The loss of a kind is the mean KL divergence (nats) from the bf16 model on the answers of its test items (forced, not
generated), as a ratio to that of runs where nothing is held out. The predictions are made before anything is quantized:

    model    share of the kind's traffic values beyond the calibrated maximum of their channel (`kind_scores`)
    text     share of the calibration tokens that are of this kind

each as a ratio to the runs where nothing is held out. Writes `artifacts/causal/<method>/`; runs that are done are
reused, and `--table` prints what is there. About a minute a run on 2 cores.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import statistics
from pathlib import Path
from typing import Any

from calibrate.build import build
from calibrate.render import load_tokenizer, render
from calibrate.spec import CalibrateSpec
from evals.drift import baseline_states, drift, texts_of
from evals.spec import EvaluateSpec
from quantize.run import quantize
from quantize.spec import QuantizeSpec
from sqtool.files import read_json, write_json
from sqtool.progress import SILENT

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "artifacts/reference/target"
POOL = ROOT / "artifacts/reference/data/calibration.jsonl"
TRAFFIC = ROOT / "artifacts/reference/data/traffic.jsonl"
WORK = ROOT / "artifacts/causal"
TOKENS = 12_000
TRAFFIC_TOKENS = 24_000
LONGEST = 1536
NOTHING = "nothing"
TOOLS = ("tool_simple", "tool_multiple", "tool_parallel", "tool_irrelevance", "long_tools")
HELD_OUT: dict[str, tuple[str, ...]] = {
    NOTHING: (),
    "tool calls": TOOLS,
    "long prompts": ("long_tools", "long_lookup"),
    "recall": ("recall",),
    "digits": ("arithmetic", "date"),
    "word lists": ("sorting", "string_edit"),
    "look-up": ("lookup", "long_lookup"),
}
"""All of the reference data is in one script, so no script can be held out; digits are the nearest to one."""
DIMENSIONS = (
    *("kinds", "prompt_length", "output_length", "special_tokens", "tokens"),
    *("activation_range", "activation_saturation", "activation_channels", "kv_range"),
)
METHODS: dict[str, Any] = {
    "gptq4": [{"gptq": {"scheme": "W4A16_ASYM", "actorder": "static", "dampening_frac": 0.001}}],
    "awq4": [{"awq": {"scheme": "W4A16_ASYM", "n_grid": 10}}],
}
# One set of texts a task: tables of drift by kind have room for ten kinds. About 60 items of each kind, all that there
# are of the rare ones, and 300 of recall.
ITEMS = {
    "tool_calls": EvaluateSpec.model_validate(
        {"tasks": ["tool_calls"], "drift": {"items": 280, "prose_items": 0, "max_length": LONGEST}}
    ),
    "tasks": EvaluateSpec.model_validate(
        {"tasks": ["tasks"], "drift": {"items": 330, "prose_items": 40, "max_length": LONGEST}}
    ),
    "recall": EvaluateSpec.model_validate(
        {"tasks": ["recall"], "drift": {"items": 300, "prose_items": 0, "max_length": LONGEST}}
    ),
}


def pool_without(kinds: tuple[str, ...], seed: int, path: Path) -> int:
    """Write conversations of other kinds, in random order, until they have `TOKENS` tokens; how many there are."""
    tokenizer = load_tokenizer(MODEL)
    records = [json.loads(line) for line in POOL.read_text().splitlines()]
    random.Random(seed).shuffle(records)
    kept: list[str] = []
    left = TOKENS
    for record in records:
        if left > 0 and record["kind"] not in kinds:
            left -= min(LONGEST, len(render(tokenizer, record)))
            kept.append(json.dumps(record) + "\n")
    path.write_text("".join(kept))
    return len(kept)


def run(method: str, stratum: str, seed: int, out: Path) -> dict[str, Any]:
    """Calibrate, quantize and compare; {"kinds": {kind: {"kl", "top1", "beyond", "tokens"}}, "dimensions": {...}}."""
    done = out / "result.json"
    if done.is_file():
        return read_json(done)  # type: ignore[no-any-return]
    make(method, stratum, seed, out)
    result = {"stratum": stratum, "seed": seed, **compare(out)}
    write_json(done, result)
    return result


def make(method: str, stratum: str, seed: int, out: Path) -> None:
    """Calibrate into `out/calibrate`, quantize into `out/quantize`."""
    for name in ("calibrate", "quantize"):
        (out / name).mkdir(parents=True, exist_ok=True)
    count = pool_without(HELD_OUT[stratum], seed, out / "pool.jsonl")
    spec = CalibrateSpec.model_validate(
        {
            "sources": [{"path": str(out / "pool.jsonl")}],
            "num_calibration_samples": count,
            "max_seq_length": LONGEST,
            "selection": "random",
            "near_duplicates": None,
            "match": str(TRAFFIC),
            # Only to measure: nothing is refused here.
            "coverage": {"min_per_kind": 0, "refuse": "never"},
            "activations": {"traffic_tokens": TRAFFIC_TOKENS, "max_length": LONGEST},
        }
    )
    build(spec, model=MODEL, seed=seed, out=out / "calibrate", progress=SILENT)
    recipe = QuantizeSpec.model_validate({"methods": METHODS[method]})
    quantize(recipe, model=MODEL, calibration=out / "calibrate", seed=0, out=out / "quantize", progress=SILENT)


def compare(out: Path) -> dict[str, Any]:
    """What was predicted from `out/calibrate`, and what `out/quantize` lost."""
    seen = read_json(out / "calibrate" / "activations.json")
    coverage = read_json(out / "calibrate" / "coverage.json")
    lost: dict[str, Any] = {}
    for task, spec in ITEMS.items():
        (out / "drift" / task).mkdir(parents=True, exist_ok=True)
        candidate = out / "quantize" / "checkpoint"
        found = drift(spec, baseline=MODEL, candidate=candidate, states=states_of(task), out=out / "drift" / task)
        lost.update(found["by_kind"])
    return {
        "dimensions": {
            name: {key: found[key] for key in ("score", "threshold", "verdict")}
            for name, found in {**coverage["text"], **coverage["model"]}.items()
        },
        "kinds": {
            kind: {
                "kl": part["answers"]["kl_mean"],
                "top1": part["answers"]["top1_agreement"],
                "beyond": 1 - seen["kind_scores"][kind],
                "tokens": coverage["kinds"].get(kind, {}).get("tokens", 0) / coverage["tokens"],
            }
            for kind, part in lost.items()
            if "kl_mean" in part["answers"]
        },
    }


def states_of(task: str) -> Path:
    """The folder of the bf16 model's states on a task's texts, made when it is not there."""
    folder = WORK / "states" / task
    if not (folder / "states.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        baseline_states(ITEMS[task], model=MODEL, texts=texts_of(ITEMS[task], MODEL, ROOT), out=folder)
    return folder


def table(method: str, results: list[dict[str, Any]]) -> None:
    """Print what was predicted and what came."""
    import numpy as np
    from scipy.stats import spearmanr

    base = [r for r in results if r["stratum"] == NOTHING]
    held = [r for r in results if r["stratum"] != NOTHING]
    kinds = sorted(base[0]["kinds"])

    def usual(kind: str, key: str) -> float:
        return statistics.geometric_mean(r["kinds"][kind][key] for r in base)

    def ratio(result: dict[str, Any], kind: str, key: str) -> float:
        return float(result["kinds"][kind][key] / usual(kind, key))

    today = datetime.datetime.now(datetime.UTC).date()
    cores = len(os.sched_getaffinity(0))
    print(f"{today}, {platform.machine()}, {cores} cores, {method}, {TOKENS} calibration tokens, {len(results)} runs\n")
    dimensions = [d for d in DIMENSIONS if d in base[0]["dimensions"]]
    print("Coverage before quantizing, with the verdict of the default limits (worst of the seeds):\n")
    print("| held out | " + " | ".join(dimensions) + " |\n" + "| --- " * (len(dimensions) + 1) + "|")
    for stratum in HELD_OUT:
        rows = [r["dimensions"] for r in results if r["stratum"] == stratum]
        if rows:
            worst = [min((row[d] for row in rows), key=lambda d: d["score"]) for d in dimensions]
            print(f"| {stratum} | " + " | ".join(f"{w['score']:.4f} {w['verdict']}" for w in worst) + " |")
    print("\nLoss by kind, as a ratio to runs with nothing held out; *held-out kinds*:\n")
    print("| held out | " + " | ".join(kinds) + " |\n" + "| --- " * (len(kinds) + 1) + "|")
    for stratum, out in HELD_OUT.items():
        rows = [r for r in results if r["stratum"] == stratum]
        if rows:
            cells = [statistics.geometric_mean(ratio(r, kind, "kl") for r in rows) for kind in kinds]
            marked = [f"*{c:.2f}*" if kind in out else f"{c:.2f}" for kind, c in zip(kinds, cells, strict=True)]
            print(f"| {stratum} | " + " | ".join(marked) + " |")
    print("| KL, nothing held out | " + " | ".join(f"{usual(kind, 'kl'):.4f}" for kind in kinds) + " |")
    noise = [np.log(ratio(r, kind, "kl")) for r in base for kind in kinds]
    print(f"\nBetween seeds with nothing held out, a ratio varies by a factor of {np.exp(np.std(noise)):.2f} (1 SD).\n")
    print("Values beyond their channel's calibrated maximum, as a ratio to runs with nothing held out:\n")
    print("| held out | " + " | ".join(kinds) + " |\n" + "| --- " * (len(kinds) + 1) + "|")
    for stratum, out in HELD_OUT.items():
        rows = [r for r in held if r["stratum"] == stratum]
        if rows:
            cells = [statistics.geometric_mean(ratio(r, kind, "beyond") for r in rows) for kind in kinds]
            marked = [f"*{c:.1f}*" if kind in out else f"{c:.1f}" for kind, c in zip(kinds, cells, strict=True)]
            print(f"| {stratum} | " + " | ".join(marked) + " |")
    pairs = [(r, kind) for r in held for kind in kinds]
    loss = [ratio(r, kind, "kl") for r, kind in pairs]
    print("\n| prediction | Spearman with the loss, all kinds | p | held-out kinds alone | others alone |")
    print("| --- | --- | --- | --- | --- |")
    for name, key, sign in (("model", "beyond", 1), ("text", "tokens", -1)):
        guess = [sign * ratio(r, kind, key) for r, kind in pairs]
        whole = spearmanr(guess, loss)
        parts = []
        for inside in (True, False):
            chosen = [i for i, (r, kind) in enumerate(pairs) if (kind in HELD_OUT[r["stratum"]]) is inside]
            some = [guess[i] for i in chosen]
            # Held-out kinds have no tokens at all: nothing to rank.
            rank = spearmanr(some, [loss[i] for i in chosen]).statistic if len(set(some)) > 1 else None
            parts.append("-" if rank is None else f"{rank:.2f}")
        print(f"| {name} | {whole.statistic:.2f} | {whole.pvalue:.2g} | " + " | ".join(parts) + " |")
    inside = [x for x, (r, kind) in zip(loss, pairs, strict=True) if kind in HELD_OUT[r["stratum"]]]
    outside = [x for x, (r, kind) in zip(loss, pairs, strict=True) if kind not in HELD_OUT[r["stratum"]]]
    print(
        f"\nHeld-out kinds lose {statistics.geometric_mean(inside):.2f} times the usual, the others "
        f"{statistics.geometric_mean(outside):.2f} times."
    )
    hits = 0
    for r in held:
        most = max(kinds, key=lambda kind: ratio(r, kind, "kl"))
        hits += most == max(kinds, key=lambda kind: ratio(r, kind, "beyond"))
    print(f"The kind that lost most was the one furthest beyond in {hits} of {len(held)} runs.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2, help="runs with each stratum held out")
    parser.add_argument("--method", choices=METHODS, default="gptq4")
    parser.add_argument("--only", choices=HELD_OUT, help="hold out this one, and print no table")
    parser.add_argument("--table", action="store_true", help="print the table of the runs that are done")
    args = parser.parse_args()
    folder = WORK / args.method
    if args.table:
        results = [read_json(path) for path in sorted(folder.glob("*/result.json"))]
    else:
        results = []
        for seed in range(args.seeds):
            for stratum in [args.only] if args.only else HELD_OUT:
                place = folder / f"{stratum.replace(' ', '-')}-{seed}"
                results.append(run(args.method, stratum, seed, place))
                print(f"{args.method} {stratum} {seed}: done", flush=True)
    if not args.only:
        table(args.method, results)


if __name__ == "__main__":
    main()
