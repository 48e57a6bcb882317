"""Calibration with batches against llm-compressor's default call, and what sqtool adds to it: time, memory, drift.

    python -m benchmarks.gpu.batch_speed --out results                      # the reference target
    python -m benchmarks.gpu.batch_speed --out results --shape 8b --layers 8 --work scratch
    python -m benchmarks.gpu.batch_speed --out tried --samples 8 --batch 4 --repeats 1 --methods gptq --no-drift

Six sides do the same work on the same calibration tokens, from loading the model to the files of the checkpoint, by
turns and each after a warm-up: in one process with a GPU, whose start is long, and each in a new one without (or with
`--apart`), since what a side leaves in the heap makes the next one's allocations faster:

    default   `llmcompressor.oneshot(model, recipe, dataset)` on the conversations as they are, one a sample: batch
              size 1, its own collator and sampler
    rows      the same on sqtool's rows: conversations packed to equal length
    bare      the same with `batch_size` alone raised; rows are of equal length, so its collator cuts nothing
    sqtool    `quantize.run.quantize` with that batch size and the default layer report
    outputs   the same with `layer_report: outputs`
    alike     sqtool with hidden states in host memory between two layers, as llm-compressor keeps them by default

Bars: sqtool <= 0.5 x default, drift equal within noise; sqtool <= 1.02 x bare. Ratios are medians over the repeats, by
turns. sqtool keeps the conversations of one row apart by their positions, and the other sides are given the same
positions. `--shape 8b` has random weights: time and memory only, so no drift; `--layers` says how deep.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib import import_module
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.gpu.pipeline import ROOT, TARGET
from benchmarks.gpu.timebox import TimeBox, heading, markdown, note, shown
from quantize.run import peak_memory, quantize, reset_peak_memory
from quantize.spec import QuantizeSpec
from sqtool.progress import SILENT

METHODS: dict[str, list[Any]] = {
    "awq": [{"awq": {"scheme": "W4A16_ASYM"}}],
    "gptq": [{"gptq": {"scheme": "W4A16"}}],
    "w8a8": [{"smoothquant": {"smoothing_strength": 0.8}}, {"gptq": {"scheme": "W8A8"}}],
    "fp8-static": [{"fp8": {"scheme": "FP8"}}],
    "fp8-dynamic": [{"fp8": {"scheme": "FP8_DYNAMIC"}}],
    "fp8-block": [{"fp8": {"scheme": "FP8_BLOCK"}}],
    "fp8-kv": [{"fp8": {"scheme": "FP8_DYNAMIC"}}, {"kv_cache": {"strategy": "tensor"}}],
}
SIDES = ("default", "rows", "bare", "sqtool", "outputs", "alike")
MIB = 1 << 20


def has_gpu() -> bool:
    """Whether there is an NVIDIA GPU that torch uses."""
    import torch

    return bool(torch.cuda.is_available())


def rows_of(work: Path, samples: int, length: int) -> Path:
    """tokens.safetensors of a calibration set of the shipped traffic. Every model here has the same tokenizer."""
    from calibrate.build import build
    from calibrate.spec import CalibrateSpec

    folder = work / f"rows-{samples}-{length}"
    path = folder / "tokens.safetensors"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        values = {"num_calibration_samples": samples, "max_seq_length": length, "coverage": {"refuse": "never"}}
        spec = CalibrateSpec.model_validate(values)
        build(spec, model=ROOT / TARGET, seed=0, out=folder, progress=SILENT, root=ROOT)
    return path


def samples_of(rows: Path, *, packed: bool) -> dict[str, list[list[int]]]:
    """Token ids and positions, by row; with `packed` false by conversation, which begins where positions do."""
    from safetensors.torch import load_file

    kept = load_file(rows)
    columns = {name: kept[name].long().tolist() for name in ("input_ids", "position_ids")}
    if packed:
        return columns
    starts = [[at for at, place in enumerate(places) if place == 0] for places in columns["position_ids"]]
    return {
        name: [
            row[start:end]
            for row, begins in zip(table, starts, strict=True)
            for start, end in pairwise([*begins, len(row)])
        ]
        for name, table in columns.items()
    }


def modifiers(spec: QuantizeSpec) -> list[Any]:
    """llm-compressor's own modifiers with the arguments that sqtool gives them."""
    found = []
    for step in spec.methods:
        for modifier in step.method.modifiers():
            module, _, name = modifier.target.partition(":")
            found.append(getattr(import_module(module), name)(**modifier.arguments))
    return found


def pinning() -> AbstractContextManager[Any]:
    """llm-compressor 0.14's AWQ asks for pinned memory, which torch refuses without an accelerator: not here then."""
    import torch
    from llmcompressor.pipelines.cache import IntermediatesCache

    if torch.accelerator.is_available():
        return nullcontext()
    return patch.object(IntermediatesCache, "pin_memory", lambda *_, **__: None)


def bare(spec: QuantizeSpec, model: Path, samples: dict[str, list[list[int]]], out: Path, batch: int | None) -> None:
    """oneshot and save_pretrained, with llm-compressor's defaults; `batch` None is its default too."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM

    from quantize.backends.quiet import quiet
    from quantize.backends.tracing import released

    dataset = Dataset.from_dict(samples)
    with quiet(out / "oneshot.log", lambda _: None), pinning(), released():
        network = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
        oneshot(
            model=network,
            tokenizer=str(model),
            recipe=modifiers(spec),
            dataset=dataset if spec.needs_calibration else None,
            num_calibration_samples=len(dataset),
            max_seq_length=max(map(len, samples["input_ids"])),
            **({} if batch is None else {"batch_size": batch}),
        )
        network.save_pretrained(str(out / "checkpoint"), save_compressed=True)


def ours(spec: QuantizeSpec, model: Path, rows: Path, out: Path) -> None:
    """sqtool's side."""
    quantize(spec, model=model, calibration=rows, seed=0, out=out, progress=SILENT)


def measured(work: Callable[[], None]) -> dict[str, float]:
    """Seconds, and peaks of host and device memory in MiB."""
    import torch

    gpu = torch.cuda.is_available()
    gc.collect()
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    reset_peak_memory()
    start = time.monotonic()
    work()
    if gpu:
        torch.cuda.synchronize()
    seconds = time.monotonic() - start
    found = {"seconds": seconds, "host_mib": peak_memory() / MIB}
    return {**found, **({"device_mib": torch.cuda.max_memory_allocated() / MIB} if gpu else {})}


def drifted(model: Path, checkpoint: Path, work: Path, items: int) -> float:
    """Mean KL divergence from the model, in nats, over test items and prose."""
    from evals.drift import baseline_states, drift, texts_of
    from evals.spec import DriftSpec, EvaluateSpec

    spec = EvaluateSpec(drift=DriftSpec(items=items, prose_items=items // 4))
    states = work / f"states-{items}"
    if not (states / "states.json").is_file():
        states.mkdir(parents=True, exist_ok=True)
        baseline_states(spec, model=model, texts=texts_of(spec, model, ROOT), out=states)
    return float(drift(spec, baseline=model, candidate=checkpoint, states=states, out=checkpoint)["all"]["kl_mean"])


class Run:
    """The sides on one model."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.work: Path = args.work / (args.shape if args.layers is None else f"{args.shape}-{args.layers}")
        self.trained = args.shape == "reference"
        if self.trained:
            self.model = ROOT / TARGET
        else:
            from benchmarks.gpu.shapes import make

            self.work.mkdir(parents=True, exist_ok=True)
            self.model = make(args.shape, self.work / "target", layers=args.layers)
        self.rows = rows_of(self.work, args.samples, args.length)

    def side(self, method: str, side: str, repeat: int) -> dict[str, Any]:
        """One side once."""
        out = self.work / f"{method}-{side}"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        report = "outputs" if side == "outputs" else "weights"
        values = {"methods": METHODS[method], "batch_size": self.args.batch, "layer_report": report}
        if side == "alike":
            values["sequential_offload_device"] = "cpu"
        spec = QuantizeSpec.model_validate(values)
        if side in ("default", "rows", "bare"):
            batch = self.args.batch if side == "bare" else None
            samples = samples_of(self.rows, packed=side != "default")
            found: dict[str, Any] = measured(partial(bare, spec, self.model, samples, out, batch))
            found["samples"] = len(samples["input_ids"])
        else:
            found = measured(partial(ours, spec, self.model, self.rows, out))
        if self.args.drift and self.trained and repeat == 0:
            found["kl_mean"] = drifted(self.model, out / "checkpoint", self.work, self.args.drift_items)
        shutil.rmtree(out, ignore_errors=True)
        return found


def started(args: argparse.Namespace, methods: list[str], sides: Iterable[str]) -> Run:
    """A run whose imports, start of CUDA and first compilation of kernels are over: they are nobody's."""
    small = {"samples": 4, "batch": 2, "drift": False, "shape": "tiny", "layers": None}
    warm = Run(argparse.Namespace(**{**vars(args), **small}))
    for method in methods:
        for side in sides:
            warm.side(method, side, 1)
    return Run(args)


def apart(args: argparse.Namespace, method: str, side: str, repeat: int) -> dict[str, Any]:
    """One side once, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_alone, args, method, side, repeat).result()


def _alone(args: argparse.Namespace, method: str, side: str, repeat: int) -> dict[str, Any]:
    return started(args, [method], [side]).side(method, side, repeat)


def table(cells: dict[str, Any], methods: list[str], repeats: int) -> str:
    """One row a method and side, with ratios to both others."""
    rows = []
    for method in methods:
        seen = {
            side: [cell for at in range(repeats) if "seconds" in (cell := cells.get(f"{method} {side} {at}", {}))]
            for side in SIDES
        }
        for side, found in seen.items():
            failed = next((cells[k]["error"] for k in (f"{method} {side} 0",) if "error" in cells.get(k, {})), "")
            if not found:
                if failed:
                    rows.append([method, side, failed, *["-"] * 6])
                continue
            ratios = []
            for other in ("default", "rows", "bare"):
                pairs = zip(found, seen[other], strict=False)
                values = [one["seconds"] / two["seconds"] for one, two in pairs]
                ratios.append(shown(statistics.median(values), 3) if values and other != side else "-")
            memory = [shown(max(one.get(name, 0) for one in found) or None, 0) for name in ("host_mib", "device_mib")]
            seconds = " ".join(shown(one["seconds"], 1) for one in found)
            rows.append([method, side, seconds, *ratios, *memory, shown(found[0].get("kl_mean"), 5)])
    headers = ("method", "side", "seconds", "x default", "x rows", "x bare", "host MiB", "device MiB", "KL, nats")
    return markdown(headers, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of batch_speed-SHAPE.json")
    parser.add_argument("--work", type=Path, default=Path("artifacts/scratch"), help="folder for models")
    parser.add_argument("--shape", choices=("reference", "8b", "tiny"), default="reference")
    parser.add_argument("--layers", type=int, help="decoder layers of a random shape; default its own")
    parser.add_argument("--methods", default="awq,gptq", help=f"of {', '.join(METHODS)}")
    parser.add_argument("--sides", default=",".join(SIDES[:5]), help=f"of {', '.join(SIDES)}")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--drift", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--drift-items", type=int, default=64)
    parser.add_argument("--apart", action=argparse.BooleanOptionalAction, help="a process for each side")
    parser.add_argument("--budget", type=float, default=240, help="seconds after which no further side begins")
    args = parser.parse_args()
    for name, known in (("methods", METHODS), ("sides", SIDES)):
        if unknown := set(getattr(args, name).split(",")).difference(known):
            parser.error(f"--{name}: no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if args.apart is None:
        args.apart = not has_gpu()
    given = {name: str(value) for name, value in vars(args).items()}
    box = TimeBox(args.out / f"batch_speed-{args.shape}.json", args.budget, {"arguments": given})
    methods, sides = args.methods.split(","), args.sides.split(",")
    if args.apart:
        run, turn_of = Run(args), partial(apart, args)
    else:
        run = started(args, methods, ("bare", "sqtool"))
        turn_of = run.side
        note(f"warm after {box.spent:.0f} s")
    for repeat in range(args.repeats):
        for method in methods:
            turn = sides if repeat % 2 == 0 else sides[::-1]
            box.run({f"{method} {side} {repeat}": partial(turn_of, method, side, repeat) for side in turn})
    print(heading(box.facts, f"python -m benchmarks.gpu.batch_speed --shape {args.shape}"))
    depth = "" if args.layers is None else f", {args.layers} layers"
    whole = len(samples_of(run.rows, packed=False)["input_ids"])
    rows = len(samples_of(run.rows, packed=True)["input_ids"])
    size = f"{rows} rows of {args.length} tokens, which are {whole} conversations or pieces of one"
    print(f"{args.shape}{depth}: {size}; batches of {args.batch}\n")
    print(table(box.cells, methods, args.repeats))
    box.close()
    note(f"{box.spent:.0f} s")


if __name__ == "__main__":
    main()
