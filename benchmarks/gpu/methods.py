"""Every quantization method on the reference target, through `sqtool eval` on this machine's device.

    python -m benchmarks.gpu.methods --out results [--workers 5] [--budget 480]
    python -m benchmarks.gpu.methods --out tried --only awq-g128-asym --limit 20 --samples 8     # seconds, on a CPU too

Each cell calibrates, quantizes, serves the checkpoint with vLLM, answers the tasks' items, and asks the server for
log-probabilities of 50 texts, which are compared with those of transformers on the same checkpoint. One row a cell:
what the checkpoint takes, what the server loaded and with which kernels, scores beside those of the bf16 model on the
same server, drift. `logprob p99` is the 99th percentile of |vLLM - transformers| in nats.

Writes methods.json (finished cells are not run again) and records.tar.gz with every answer, which
`benchmarks.gpu.agreement` compares with those of another machine. A cell that fails has its reason in the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu import pipeline
from benchmarks.gpu.timebox import TimeBox, heading, markdown, note, shown

FP8_KV = {"kv_cache": {"strategy": "tensor"}}
MIXED = [
    {"gptq": {"scheme": "W4A16", "targets": ["re:.*mlp.*"]}},
    {"fp8": {"scheme": "FP8_DYNAMIC", "targets": ["re:.*self_attn.*"]}},
]
SMOOTH = {"smoothquant": {"smoothing_strength": 0.8}}
CELLS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    # The formats that are served most come first: where the time is short, the rest is left out.
    "awq-g128-asym": ([{"awq": {"scheme": "W4A16_ASYM"}}], {}),
    "gptq-g128-sym": ([{"gptq": {"scheme": "W4A16"}}], {}),
    "fp8-dynamic": ([{"fp8": {"scheme": "FP8_DYNAMIC"}}], {}),
    "fp8-static": ([{"fp8": {"scheme": "FP8"}}], {}),
    "fp8-block": ([{"fp8": {"scheme": "FP8_BLOCK"}}], {}),
    "w8a8-smoothquant-gptq": ([SMOOTH, {"gptq": {"scheme": "W8A8"}}], {}),
    "fp8-dynamic+kv-tensor": ([{"fp8": {"scheme": "FP8_DYNAMIC"}}, FP8_KV], {"kv_cache_dtype": "fp8"}),
    "gptq-w8a16": ([{"gptq": {"scheme": "W8A16"}}], {}),
    "fp8-static+kv-tensor": ([{"fp8": {"scheme": "FP8"}}, FP8_KV], {}),
    "fp8-dynamic+kv-head": ([{"fp8": {"scheme": "FP8_DYNAMIC"}}, {"kv_cache": {"strategy": "attn_head"}}], {}),
    "mixed-fp8-attention-w4-mlp": (MIXED, {}),
    "nvfp4": ([{"fp4": {"scheme": "NVFP4"}}], {}),
    "mxfp4": ([{"fp4": {"scheme": "MXFP4"}}], {}),
    "rtn-g128-sym": ([{"rtn": {"scheme": "W4A16"}}], {}),
    "awq-g128-sym": ([{"awq": {"scheme": "W4A16"}}], {}),
    "gptq-g128-asym": ([{"gptq": {"scheme": "W4A16_ASYM"}}], {}),
    "awq-g32-asym": ([{"awq": {"scheme": "W4A16_ASYM", "group_size": 32}}], {}),
    "gptq-g32-sym": ([{"gptq": {"scheme": "W4A16", "group_size": 32}}], {}),
    "awq-g64-sym": ([{"awq": {"scheme": "W4A16", "group_size": 64}}], {}),
    "gptq-g64-asym": ([{"gptq": {"scheme": "W4A16_ASYM", "group_size": 64}}], {}),
    "gptq-no-actorder": ([{"gptq": {"scheme": "W4A16", "actorder": None}}], {}),
    "awq-g128-asym+kv-tensor": ([{"awq": {"scheme": "W4A16_ASYM"}}, FP8_KV], {}),
    "nvfp4a16": ([{"fp4": {"scheme": "NVFP4A16"}}], {}),
    "mxfp4a16": ([{"fp4": {"scheme": "MXFP4A16"}}], {}),
    "rtn-g128-asym": ([{"rtn": {"scheme": "W4A16_ASYM"}}], {}),
    "rtn-w8a16": ([{"rtn": {"scheme": "W8A16"}}], {}),
    "rtn-w8a8": ([{"rtn": {"scheme": "W8A8"}}], {}),
    "w8a8-smoothquant-rtn": ([SMOOTH, {"rtn": {"scheme": "W8A8"}}], {}),
    "rtn-g32-sym": ([{"rtn": {"scheme": "W4A16", "group_size": 32}}], {}),
    "rtn-g64-asym": ([{"rtn": {"scheme": "W4A16_ASYM", "group_size": 64}}], {}),
    "gptq-nvfp4a16": ([{"gptq": {"scheme": "NVFP4A16"}}], {}),
    "kv-tensor": ([FP8_KV], {}),
}
SHORT = ("schema", "call", "tasks", "recall")


def recipe(name: str, samples: int, limit: int | None, *, drift: bool) -> dict[str, Any]:
    """The recipe of one cell."""
    methods, own = CELLS[name]
    evaluation: dict[str, Any] = {"limit": limit, "control": None, "as_served": None}
    return {
        "name": f"gpu-{name.replace('+', '-')}",
        "model": pipeline.TARGET,
        "calibrate": {"num_calibration_samples": samples, "max_seq_length": 512, "coverage": {"refuse": "never"}},
        "quantize": {"methods": methods},
        "engine": pipeline.engine(**own),
        "evaluate": evaluation if drift else {**evaluation, "drift": None},
        "speculate": {"enabled": False},
    }


def cell(name: str, samples: int, limit: int | None, timeout: float) -> dict[str, Any]:
    """Quantize and evaluate; once more without drift where transformers cannot read the checkpoint."""
    unread = ""
    try:
        document = pipeline.evaluate(recipe(name, samples, limit, drift=True), timeout)
    except RuntimeError as error:
        if "drift" not in str(error) and "transformers" not in str(error):
            raise
        unread = str(error).splitlines()[0]
        document = pipeline.evaluate(recipe(name, samples, limit, drift=False), timeout)
    found = {"quantize": pipeline.quantize_summary(document), **pipeline.side(document, "evaluate")}
    found["baseline"] = pipeline.side(document, "baseline")
    return {**found, **({"unread": unread} if unread else {})}


def row(name: str, cell: dict[str, Any]) -> list[str]:
    """One line of the table."""
    if "error" in cell:
        return [name, "no: " + cell["error"].replace("|", "/"), *["-"] * (len(HEADERS) - 2)]
    made, before, check = cell["quantize"], cell["baseline"], cell.get("check") or {}
    facts = cell["engine"]
    deltas = []
    for metric, value in cell["scores"].items():
        deltas.append(f"{100 * value:.1f} ({100 * (value - before['scores'][metric]):+.1f})")
    attention = ", ".join(facts.get("attention") or ())
    return [
        name,
        "yes",
        ", ".join(facts.get("kernels") or ()) or "-",
        f"{facts.get('kv_cache_dtype') or '-'}{', ' + attention if attention else ''}",
        shown(made["bits_per_weight"]),
        shown(cell.get("weights_gib"), 3),
        str(cell.get("kv_cache_tokens", "-")),
        *deltas,
        shown(cell.get("kl_mean"), 4),
        cell.get("unread") or f"{shown(check.get('logprob_p99'), 3)} ({'near' if check.get('passed') else 'NOT near'})",
        shown(made["seconds"], 1),
        shown(facts.get("start_seconds"), 0),
    ]


HEADERS = (
    "method",
    "loads",
    "kernels",
    "KV cache, attention",
    "bits per weight",
    "weights GiB",
    "KV tokens",
    *(f"{name} %" for name in SHORT),
    "KL",
    "logprob p99",
    "quantize s",
    "start s",
)


def table(cells: dict[str, Any]) -> str:
    """All finished cells, those of bf16 first."""
    good = [cell for cell in cells.values() if "error" not in cell]
    rows = []
    if good:
        base = good[0]["baseline"]
        values = [f"{100 * value:.1f}" for value in base["scores"].values()]
        check = base.get("check") or good[0].get("baseline_check") or {}
        near = f"{shown(check.get('logprob_p99'), 3)} ({'near' if check.get('passed') else 'NOT near'})"
        cache = base["engine"].get("kv_cache_dtype") or "-"
        weights, tokens = shown(base.get("weights_gib"), 3), str(base.get("kv_cache_tokens", "-"))
        start = shown(base["engine"].get("start_seconds"), 0)
        rows.append(["bf16", "yes", "-", cache, "16", weights, tokens, *values, "0", near, "-", start])
    rows += [row(name, cells[name]) for name in CELLS if name in cells]
    return markdown(HEADERS, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of methods.json and records.tar.gz")
    parser.add_argument("--only", default=",".join(CELLS), help="comma-separated cells")
    parser.add_argument("--budget", type=float, default=480, help="seconds after which no further cell begins")
    parser.add_argument("--workers", type=int, default=5, help="cells at once")
    parser.add_argument("--samples", type=int, default=128, help="calibration samples of 512 tokens")
    parser.add_argument("--limit", type=int, help="items of each task; default all")
    parser.add_argument("--timeout", type=float, default=pipeline.TIMEOUT, help="seconds of one cell; a CPU needs more")
    args = parser.parse_args()
    box = TimeBox(args.out / "methods.json", args.budget, {"samples": args.samples, "limit": args.limit})
    names = args.only.split(",")
    if unknown := [name for name in names if name not in CELLS]:
        parser.error(f"no such cell: {', '.join(unknown)}; there are {', '.join(CELLS)}")
    todo: dict[str, Callable[[], dict[str, Any]]] = {
        n: partial(cell, n, args.samples, args.limit, args.timeout) for n in names
    }
    box.run(todo, args.workers)
    good = {name: found for name, found in box.cells.items() if "error" not in found}
    sides = {"bf16": next(iter(good.values()))["baseline"], **good} if good else {}
    pipeline.pack(sides, args.out / "records.tar.gz")
    print(heading(box.facts, "python -m benchmarks.gpu.methods"))
    print(
        f"{args.samples} calibration samples of 512 tokens; scores in %, in brackets against bf16 on the same server\n"
    )
    print(table(box.cells))
    box.close()
    note(f"{box.spent:.0f} s")


if __name__ == "__main__":
    main()
