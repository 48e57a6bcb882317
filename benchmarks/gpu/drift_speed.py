"""Where the time of drift goes on this machine's device, beside the two bare forward passes that it needs.

    python -m benchmarks.gpu.drift_speed --out results [--items 64] [--repeats 5]

By turns, as `benchmarks.drift.two_passes`: both bare models on the same batches, and everything from the token ids to
drift.json. Then sqtool's side once more under cProfile: one row for each function of `evals` and for loading and
running the models, by time inside of it and what it calls. A GPU works on while Python goes on: what is waited for
shows where something asks for a result.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.drift.pair import ROOT, TARGET, by_turns, ratios
from benchmarks.gpu.four_arms import quantized
from benchmarks.gpu.timebox import TimeBox, heading, markdown, shown
from evals import loading
from evals.drift import baseline_states, drift, texts_of
from evals.quiet import quiet
from evals.spec import DriftSpec, EvaluateSpec
from evals.texts import Text, batches

KNOWN = ("from_pretrained", "save_file", "get_tensor", "to", "cpu", "item", "__bool__", "__float__")
"""Functions outside of `evals` whose time is of interest."""
LEAST_SHARE = 0.01


def sides(spec: EvaluateSpec, candidate: Path, texts: list[Text]) -> tuple[Callable[[], None], Callable[[], None]]:
    """(sqtool's side, the two bare passes)."""
    import torch
    from transformers import AutoModelForCausalLM

    device = loading.device("auto")
    dtype = loading.dtype("auto", device)
    assert spec.drift is not None
    groups = batches(texts, spec.drift.batch_tokens)

    def bare() -> None:
        with torch.inference_mode(), quiet():
            for model in (TARGET, candidate):
                network = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval().to(device)
                for group in groups:
                    longest = len(group[0].tokens)
                    rows = [[*text.tokens, *[0] * (longest - len(text.tokens))] for text in group]
                    network(torch.tensor(rows, device=device), use_cache=False).logits  # noqa: B018
            if device != "cpu":
                torch.cuda.synchronize()

    def ours() -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "states").mkdir()
            baseline_states(spec, model=TARGET, texts=texts, out=folder / "states")
            drift(spec, baseline=TARGET, candidate=candidate, states=folder / "states", out=folder)

    return ours, bare


def profile(work: Callable[[], None]) -> list[dict[str, Any]]:
    """Functions with their calls, seconds inside of them alone and with what they call, the longest first."""
    watch = cProfile.Profile()
    watch.enable()
    work()
    watch.disable()
    stats: Any = pstats.Stats(watch)
    rows = []
    for (file, _, name), (_, calls, own, total, _) in stats.stats.items():
        inside = Path(file).parent.name == "evals"
        if inside or any(word in name for word in KNOWN):
            where = f"{Path(file).stem}.{name}" if inside else name
            rows.append({"function": where, "calls": calls, "own": own, "total": total})
    rows.sort(key=lambda row: -row["total"])
    whole = stats.total_tt
    return [{**row, "share": row["total"] / whole} for row in rows if row["total"] >= LEAST_SHARE * whole]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of drift_speed.json")
    parser.add_argument("--work", type=Path, default=Path("artifacts/scratch"), help="folder for the candidate")
    parser.add_argument("--items", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    candidate = args.work / "drift-fp8"
    quantized([{"fp8": {"scheme": "FP8_DYNAMIC"}}], str(TARGET), None, str(candidate))
    box = TimeBox(args.out / "drift_speed.json", budget=float("inf"))
    spec = EvaluateSpec(drift=DriftSpec(items=args.items, prose_items=args.items // 4))
    texts = texts_of(spec, TARGET, ROOT)
    ours, bare = sides(spec, candidate / "checkpoint", texts)
    for side in (bare, ours):
        side()
    pairs = by_turns(ours, bare, args.repeats)
    rows = profile(ours)
    box.keep("turns", {"seconds": [[one[1], other[1]] for one, other in pairs], "profile": rows})
    _, wall = ratios(pairs)
    print(heading(box.facts, "python -m benchmarks.gpu.drift_speed"))
    print(f"{len(texts)} texts, {sum(len(text.tokens) for text in texts)} tokens\n")
    turns = [
        [at, shown(one[1], 3), shown(other[1], 3), shown(one[1] / other[1])] for at, (one, other) in enumerate(pairs)
    ]
    print(markdown(("turn", "drift, wall s", "bare, wall s", "ratio"), turns))
    print(f"\nmedian ratio of wall time: {wall:.2f} (target: at most 1.25)\n")
    headers = ("function", "calls", "ms alone", "ms with what it calls", "share")
    shares = [
        [r["function"], r["calls"], shown(r["own"], 1, 1000), shown(r["total"], 1, 1000), shown(r["share"], 2)]
        for r in rows
    ]
    print(markdown(headers, shares))


if __name__ == "__main__":
    main()
