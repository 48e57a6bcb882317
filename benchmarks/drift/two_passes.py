"""Drift of one candidate against the two bare forward passes that it needs, side by side.

    python -m benchmarks.drift.two_passes --candidate CHECKPOINT [--items 64] [--repeats 5] [--threads 1]

The bare script loads both models and runs the same batches of token ids through each, logits of the whole vocabulary
included, and does nothing with them. sqtool's side is everything from the same token ids to `drift.json`:
`baseline_states` (states to disk), then `drift` (states from disk, both output layers, all figures, slices, errors by
layer, numerical stability). By turns in one process; ratios of CPU seconds, because a busy machine changes them little.
One thread, so that waiting for a thread that does not get its processor is no part of it. What making the texts costs
(loading and checking all tasks, chat template, tokenizer), which both need, is printed beside.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.drift.pair import ROOT, TARGET, by_turns, cpu_and_wall, ratios
from evals import loading
from evals.drift import baseline_states, drift, texts_of
from evals.quiet import quiet
from evals.spec import DriftSpec, EvaluateSpec
from evals.texts import Text, batches


def main() -> None:
    import torch
    from transformers import AutoModelForCausalLM

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidate", type=Path, required=True)
    parser.add_argument("--items", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    spec = EvaluateSpec(drift=DriftSpec(items=args.items, prose_items=args.items // 4))
    assert spec.drift is not None
    device = loading.device("auto")
    dtype = loading.dtype("auto", device)
    texts_of(spec, TARGET, ROOT)  # imports
    texts: list[Text] = []
    rendering, _ = cpu_and_wall(lambda: texts.extend(texts_of(spec, TARGET, ROOT)))
    groups = batches(texts, spec.drift.batch_tokens)

    def bare() -> None:
        with torch.inference_mode(), quiet():
            for model in (TARGET, args.candidate):
                network = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval().to(device)
                for group in groups:
                    longest = len(group[0].tokens)
                    rows = [[*text.tokens, *[0] * (longest - len(text.tokens))] for text in group]
                    network(torch.tensor(rows, device=device), use_cache=False).logits  # noqa: B018

    def ours() -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "states").mkdir()
            baseline_states(spec, model=TARGET, texts=texts, out=folder / "states")
            drift(spec, baseline=TARGET, candidate=args.candidate, states=folder / "states", out=folder)

    bare()
    ours()
    pairs = by_turns(ours, bare, args.repeats)
    tokens = sum(len(text.tokens) for text in texts)
    print(f"{len(texts)} texts, {tokens} tokens, {device}, {dtype}, {args.threads} thread(s), {args.candidate}")
    print("| turn | drift, CPU s | bare, CPU s | ratio | drift, wall s | bare, wall s |\n|---|---|---|---|---|---|")
    for turn, ((cpu, wall), (bare_cpu, bare_wall)) in enumerate(pairs):
        print(f"| {turn} | {cpu:.2f} | {bare_cpu:.2f} | {cpu / bare_cpu:.3f} | {wall:.2f} | {bare_wall:.2f} |")
    ratio, wall_ratio = ratios(pairs)
    print(f"making the texts, once: {rendering:.2f} CPU s")
    print(f"median ratio: {ratio:.3f} of CPU time, {wall_ratio:.3f} of wall time (target: at most 1.25)")


if __name__ == "__main__":
    main()
