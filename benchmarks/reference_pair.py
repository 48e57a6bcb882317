"""The bars that the reference pair has to meet, measured with the real quantizer and the real engine.

    .venv/bin/python benchmarks/reference_pair.py            # all of it, about an hour on 2 cores; resumes
    .venv/bin/python benchmarks/reference_pair.py --only bf16,rtn4,awq4

Greedy, on the shipped test items. Prints one Markdown table of scores in % by kind, then each bar with what was seen;
exits 1 when a bar is missed. Acceptance comes from a finished `sqtool quantize recipes/awq4.yaml`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
PAIR = ROOT / "artifacts" / "reference"

VARIANTS: dict[str, list[dict[str, Any]] | None] = {
    "bf16": None,
    "fp8_dynamic": [{"fp8": {"scheme": "FP8_DYNAMIC"}}],
    "w8a8_smoothquant": [{"smoothquant": {"smoothing_strength": 0.8}}, {"gptq": {"scheme": "W8A8"}}],
    "w8a8_naive": [{"rtn": {"scheme": "W8A8"}}],
    "awq4": [{"awq": {"scheme": "W4A16_ASYM"}}],
    "gptq4": [{"gptq": {"scheme": "W4A16"}}],
    "rtn4": [{"rtn": {"scheme": "W4A16"}}],
    "rtn3_simulated": [{"rtn": {"bits": 3, "simulate": True}}],
}
CALLS = ("tool_simple", "tool_multiple")
EXACT = ("lookup", "long_lookup", "arithmetic", "sorting", "string_edit", "date")


def measure(name: str, work: Path, calibration: Path) -> dict[str, Any]:
    """Quantize and evaluate one variant, or read what an earlier run left."""
    from evals.run import evaluate
    from evals.spec import EngineSpec, EvaluateSpec
    from quantize.run import quantize
    from quantize.spec import QuantizeSpec
    from sqtool.progress import SILENT

    out = work / name
    done = out / "scores.json"
    if done.exists():
        return dict(json.loads(done.read_text()))
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    model, methods, started = PAIR / "target", VARIANTS[name], time.monotonic()
    if methods:
        spec = QuantizeSpec.model_validate({"methods": methods})
        quantize(spec, model=model, calibration=calibration, seed=0, out=out, progress=SILENT)
        model = out / "checkpoint"
    quantizing = time.monotonic() - started
    summary = evaluate(EvaluateSpec(), EngineSpec(), model=model, root=ROOT, out=out, progress=SILENT)
    tasks = summary["tasks"]
    kinds = {k: v for t in ("tool_calls", "tasks", "recall") for k, v in tasks[t]["by_kind"].items()}
    scores = {k: 100 * v["metrics"].get("call_match", v["metrics"].get("exact_match", 0.0)) for k, v in kinds.items()}
    scores["schema_valid"] = 100 * tasks["tool_calls"]["metrics"]["schema_valid"]
    result = {"scores": scores, "n": sum(v["n"] for v in kinds.values()), "quantize_s": quantizing}
    done.write_text(json.dumps(result, indent=1) + "\n")
    return result


def bars(s: dict[str, dict[str, float]]) -> list[tuple[str, bool, str]]:
    """(bar, met, what was seen) for each that the measured variants allow to judge."""
    out: list[tuple[str, bool, str]] = []
    base = s["bf16"]
    exact = sum(base[k] for k in EXACT) / len(EXACT)
    out.append(("schema-valid calls >= 95", base["schema_valid"] >= 95, f"{base['schema_valid']:.1f}"))
    out += [(f"{k} calls exact >= 90", base[k] >= 90, f"{base[k]:.1f}") for k in CALLS]
    out.append(("exact-match tasks >= 85 on average", exact >= 85, f"{exact:.1f}"))
    out.append(("recall >= 95", base["recall"] >= 95, f"{base['recall']:.1f}"))
    groups = {"schema_valid": ("schema_valid",), "calls": CALLS, "exact match": EXACT, "recall": ("recall",)}

    def down(name: str, kinds: tuple[str, ...]) -> float:
        return sum(base[k] - s[name][k] for k in kinds) / len(kinds)

    for name in ("fp8_dynamic", "w8a8_smoothquant"):
        if name in s:
            worst = max(groups, key=lambda g: abs(down(name, groups[g])))
            lost = down(name, groups[worst])
            out.append((f"{name} within 0.5 points everywhere", abs(lost) <= 0.5, f"{worst} {-lost:+.2f}"))
    for name in ("w8a8_naive", "rtn4"):
        if name in s:
            kind = max(base, key=lambda k: base[k] - s[name][k])
            out.append(
                (f"{name} down >= 3 on some kind", down(name, (kind,)) >= 3, f"{kind} {-down(name, (kind,)):+.1f}")
            )
    fours = [n for n in ("awq4", "gptq4") if n in s]
    if "rtn4" in s and fours:
        lost = down("rtn4", ("recall",))
        for name in fours:
            rest = down(name, ("recall",))
            out.append((f"{name} at least half-way back on recall", rest <= lost / 2, f"{-rest:+.2f} of {-lost:+.2f}"))
        best = min(fours, key=lambda n: down(n, ("recall",)))
        out.append(
            ("one of them within 1 point", down(best, ("recall",)) <= 1, f"{best} {-down(best, ('recall',)):+.2f}")
        )
    if "rtn3_simulated" in s:
        seen = s["rtn3_simulated"]["recall"]
        out.append(("3 bits ruined (recall under 50)", seen < 50, f"{seen:.1f}"))
    return out


def acceptance(path: Path) -> list[tuple[str, bool, str]]:
    """The bars on mean acceptance length, from a run's speculate.json."""
    if not path.exists():
        return [("acceptance", False, f"no {path.relative_to(ROOT)}: run `sqtool quantize recipes/awq4.yaml` first")]
    arm = json.loads(path.read_text())["arms"]["speculative"]
    overall = arm["speculation"]["acceptance_length"]
    lengths = {k: v["acceptance_length"] for k, v in arm["speculation"]["by_kind"].items() if v["drafts"] >= 20}
    low, high = min(lengths, key=lengths.__getitem__), max(lengths, key=lengths.__getitem__)
    apart = lengths[high] - lengths[low]
    seen = f"{high} {lengths[high]:.2f}, {low} {lengths[low]:.2f}"
    return [
        ("mean acceptance length 2.5 to 4.3", 2.5 <= overall <= 4.3, f"{overall:.2f}"),
        ("easiest and hardest kind >= 0.8 apart", apart >= 0.8, seen),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(VARIANTS), help="comma-separated variants (bf16 is always measured)")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "reference_pair")
    parser.add_argument("--speculate", type=Path, default=ROOT / "artifacts/runs/awq4/speculate/speculate.json")
    args = parser.parse_args()
    names = [n for n in VARIANTS if n == "bf16" or n in args.only.split(",")]

    from calibrate.build import build
    from calibrate.spec import CalibrateSpec
    from sqtool.progress import SILENT

    calibration = args.work / "calibration"
    if not (calibration / "tokens.safetensors").exists():
        calibration.mkdir(parents=True, exist_ok=True)
        spec = CalibrateSpec.model_validate({"sources": [{"path": str(PAIR / "data" / "calibration.jsonl")}]})
        build(spec, model=PAIR / "target", seed=0, out=calibration, progress=SILENT)
    results = {}
    for name in names:
        results[name] = measure(name, args.work, calibration)
        print(f"{name}: {results[name]['n']} items, quantized in {results[name]['quantize_s']:.0f} s", file=sys.stderr)
    kinds = list(results["bf16"]["scores"])
    print(
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {platform.machine()}, `python benchmarks/reference_pair.py`\n"
    )
    print("| " + " | ".join(["variant", *kinds]) + " |\n" + "| --- " * (len(kinds) + 1) + "|")
    for name, result in results.items():
        print(f"| {name} | " + " | ".join(f"{result['scores'][k]:.1f}" for k in kinds) + " |")
    print("\n| bar | met | seen |\n| --- | --- | --- |")
    judged = bars({n: r["scores"] for n, r in results.items()}) + acceptance(args.speculate)
    for bar, met, seen in judged:
        print(f"| {bar} | {'yes' if met else 'NO'} | {seen} |")
    return 0 if all(met for _, met, _ in judged) else 1


if __name__ == "__main__":
    raise SystemExit(main())
