"""What calibration's own kernels and orders save on a CPU: attention in bf16, and AWQ's grid search.

    python -m benchmarks.calibration.parts [--samples 64] [--batch 8]

Attention: the eager way of transformers, torch's fused kernel and `quantize.backends.attention.attend`, by turns on the
same rows; medians. Search: the share of AWQ's passes that are made for each ratio to begin with, on the reference
target. Every checkpoint must have the bytes of the one that AWQModifier's own search makes.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from llmcompressor.modifiers.transform.awq import AWQModifier
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama.modeling_llama import eager_attention_forward

from benchmarks.gpu.batch_speed import METHODS, rows_of
from benchmarks.gpu.pipeline import ROOT, TARGET
from benchmarks.gpu.timebox import markdown
from quantize.backends import attention, awq, search
from quantize.run import quantize
from quantize.spec import QuantizeSpec
from sqtool.progress import SILENT

RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)


def attention_ms(repeats: int) -> dict[str, float]:
    """Median milliseconds of one call on 8 rows of 512 tokens with the heads of the reference target."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(8, heads, 512, 64).bfloat16() for heads in (6, 2, 2))
    mask = torch.full((8, 1, 512, 512), torch.finfo(torch.bfloat16).min).triu(1).bfloat16()
    module = SimpleNamespace(num_key_value_groups=3, is_causal=True, training=False)
    ways: dict[str, Callable[..., Any]] = {
        "eager": eager_attention_forward,
        "fused": sdpa_attention_forward,
        "ours": attention.attend,
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    with torch.no_grad():
        for _ in range(repeats):
            for name, way in ways.items():
                start = time.perf_counter()
                way(module, query, key, value, mask, scaling=0.125, dropout=0.0)
                taken[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values[1:]) for name, values in taken.items()}


def searched(rows: Path, batch: int, begin: float | None) -> tuple[float, str]:
    """Share of the passes that were made, in tokens, and the checkpoint's SHA-256. `begin` None is AWQModifier's own
    search."""
    asked, whole = 0, 0
    real = search.Search.loss

    def counting(grid: search.Search, module: torch.nn.Module, wanted: list[torch.Tensor]) -> float:
        nonlocal whole
        whole += sum(batch.numel() for batch in wanted)
        handle = module.register_forward_hook(count)
        try:
            return real(grid, module, wanted)
        finally:
            handle.remove()

    def count(_module: Any, _inputs: Any, output: Any) -> None:
        nonlocal asked
        asked += search.first(output).numel()

    patches: list[Any] = [patch.object(search.Search, "loss", counting)]
    if begin is None:
        theirs = ("_compute_best_scale", "_run_samples", "_compute_loss")
        patches += [patch.object(awq.Awq, name, getattr(AWQModifier, name)) for name in theirs]
    else:
        patches.append(patch.object(search, "LIKELY", begin))
    spec = QuantizeSpec.model_validate({"methods": METHODS["awq"], "batch_size": batch})
    with ExitStack() as stack:
        for one in patches:
            stack.enter_context(one)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        quantize(spec, model=ROOT / TARGET, calibration=rows, seed=0, out=folder, progress=SILENT)
        made = (folder / "checkpoint" / "model.safetensors").read_bytes()
    return (asked / whole if whole else 1.0), hashlib.sha256(made).hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    times = attention_ms(args.repeats)
    rows = [[name, f"{value:.1f}", f"{value / times['fused']:.2f}"] for name, value in times.items()]
    print(markdown(("attention", "ms", "x fused"), rows))
    with tempfile.TemporaryDirectory() as work:
        tokens = rows_of(Path(work), args.samples, 512)
        _, wanted = searched(tokens, args.batch, None)
        cells = []
        for ratio in RATIOS:
            share, found = searched(tokens, args.batch, ratio)
            cells.append([f"{ratio:.1f}", f"{100 * share:.1f}", "yes" if found == wanted else "NO"])
    print()
    print(markdown(("search begins with", "% of the passes", "AWQModifier's bytes"), cells))
    return 0 if all(cell[-1] == "yes" for cell in cells) else 1


if __name__ == "__main__":
    raise SystemExit(main())
