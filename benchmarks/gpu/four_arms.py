"""Baseline, quantization, speculation and both, in four formats at several loads, on one device.

    python -m benchmarks.gpu.four_arms --out results/pair --work scratch [--budget 420]
    python -m benchmarks.gpu.four_arms --out results/8b --work scratch --shape 8b [--budget 420]
    python -m benchmarks.gpu.four_arms --out tried --work scratch --shape tiny --formats bf16,fp8 --loads 1,2 \\
        --requests 4 --rounds 1 --prompt-tokens 32 --max-tokens 8      # a minute or two on a CPU

`--shape reference` (the default) is the reference pair on its own traffic: trained, so acceptance is real. `--shape 8b`
has random weights in the shape of Llama 3.1 8B with a random draft of 0.3e9 weights: latency and memory only. Nothing
that this draft proposes is accepted, by construction: its arms show what speculation costs when nothing is gained.

All servers run side by side with a fixed KV cache each, and idle while another is measured; in every round and at every
load the arms come in another order. Prefix caching is off, since every round sends the same prompts. Writes
four_arms.json (finished cells are not measured again), and latency.png and throughput.png. Prints one row for each arm
and load, the gains over bf16 with 95 % intervals, and what was left out when the time was over.
"""

from __future__ import annotations

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.gpu import arms as side
from benchmarks.gpu import pipeline
from benchmarks.gpu.arms import Arm
from benchmarks.gpu.timebox import TimeBox, heading, markdown, note, shown
from sqtool.errors import SqtoolError

SMOOTH = {"smoothquant": {"smoothing_strength": 0.8}}
TRAINED: dict[str, list[Any]] = {
    "fp8": [{"fp8": {"scheme": "FP8_DYNAMIC"}}],
    "w4a16": [{"awq": {"scheme": "W4A16_ASYM"}}],
    "w8a8": [SMOOTH, {"gptq": {"scheme": "W8A8"}}],
}
RANDOM: dict[str, list[Any]] = {
    "fp8": [{"fp8": {"scheme": "FP8_DYNAMIC"}}],
    "w4a16": [{"rtn": {"scheme": "W4A16"}}],
    "w8a8": [{"rtn": {"scheme": "W8A8"}}],
}
"""No values to save, so nothing is calibrated: the kernels are the same."""
FORMATS = ("bf16", "fp8", "w4a16", "w8a8")
LEAST = 16
"""Requests of the warm-up, and the least of a cell."""
DRAFTED = "+draft"
FIGURES = (("ttft", ("p50", "p95"), 1), ("tpot", ("p50", "p95"), 2), ("e2e", ("p50", "p95", "p99"), 0))


def quantized(methods: list[Any], model: str, tokens: str | None, out: str) -> float:
    """Quantize into `out/checkpoint` unless that is done; seconds. Runs in a process of its own."""
    from quantize.run import quantize
    from quantize.spec import QuantizeSpec
    from sqtool.files import read_json, write_json
    from sqtool.progress import SILENT

    done = Path(out) / "done.json"
    if done.is_file():
        return float(read_json(done)["seconds"])
    Path(out).mkdir(parents=True, exist_ok=True)
    spec = QuantizeSpec.model_validate({"methods": methods, "layer_report": "off"})
    calibration = Path(tokens) if tokens else None
    summary = quantize(spec, model=Path(model), calibration=calibration, seed=0, out=Path(out), progress=SILENT)
    write_json(done, {"seconds": summary["seconds"], "bits_per_weight": summary["bits_per_weight"]})
    return float(summary["seconds"])


def calibrated(work: Path) -> Path:
    """A calibration set of the reference target."""
    from calibrate.build import build
    from calibrate.spec import CalibrateSpec
    from sqtool.progress import SILENT

    folder = work / "calibration"
    if not (folder / "tokens.safetensors").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        values = {"num_calibration_samples": 128, "max_seq_length": 512, "coverage": {"refuse": "never"}}
        spec = CalibrateSpec.model_validate(values)
        build(spec, model=pipeline.ROOT / pipeline.TARGET, seed=0, out=folder, progress=SILENT, root=pipeline.ROOT)
    return folder


def models(args: argparse.Namespace) -> tuple[dict[str, Path], Path]:
    """Checkpoint of each format, and the draft model."""
    work: Path = args.work / args.shape
    work.mkdir(parents=True, exist_ok=True)
    wanted = [fmt for fmt in args.formats.split(",") if fmt != "bf16"]
    if args.shape == "reference":
        target, draft, table = pipeline.ROOT / pipeline.TARGET, pipeline.ROOT / pipeline.DRAFT, TRAINED
        tokens = str(calibrated(work)) if wanted else None
    else:
        from benchmarks.gpu.shapes import DRAFT_OF, make

        table, tokens = RANDOM, None
        # In processes of their own: what made the models must not keep memory of the device.
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
            shapes = {args.shape: work / "target", DRAFT_OF[args.shape]: work / "draft"}
            target, draft = pool.map(make, shapes, shapes.values())
        note(f"made {target} and {draft}")
    with ProcessPoolExecutor(args.quantize_at_once, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = {f: pool.submit(quantized, table[f], str(target), tokens, str(work / f)) for f in wanted}
        for fmt, job in jobs.items():
            note(f"{fmt}: quantized in {job.result():.0f} s")
    return {"bf16": target, **{fmt: work / fmt / "checkpoint" for fmt in wanted}}, draft


def requests_of(args: argparse.Namespace) -> list[Any]:
    """The requests that every arm answers, and first some others that warm it up."""
    from sqtool.speculate.requestlog import load_requests
    from sqtool.speculate.traffic import Request, choose

    known = load_requests(pipeline.ROOT / "artifacts/reference/data/traffic.jsonl", args.max_tokens)
    traffic = choose(known, args.requests, LEAST, 0, single_kind_blocks=False)
    chosen = [*traffic.warmup, *traffic.requests]
    if args.shape == "reference":
        return chosen
    # Random weights do not stop by themselves and do not care what they read: fixed lengths, so that arms compare.
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(pipeline.ROOT / pipeline.TARGET / "tokenizer.json"))
    text = " ".join(str(message.get("content")) for request in known for message in request.body["messages"])
    ids = tokenizer.encode(text).ids
    size = args.prompt_tokens
    made = []
    for number, request in enumerate(chosen):
        at = (number * size) % max(1, len(ids) - size)
        content = tokenizer.decode(ids[at : at + size])
        body = {
            "messages": [{"role": "user", "content": content}],
            "max_tokens": args.max_tokens,
            "ignore_eos": True,
        }
        made.append(Request(request.id, "random", body))
    return made


def measure(args: argparse.Namespace, box: TimeBox) -> None:
    """Start servers, some formats after another where they do not all fit, and fill the box."""
    from evals.spec import EngineSpec

    checkpoints, draft = models(args)
    requests = requests_of(args)
    warmup, measured = requests[:LEAST], requests[LEAST:]
    loads = [int(load) for load in args.loads.split(",")]
    pairs = [(fmt, path, ending) for fmt, path in checkpoints.items() for ending in ("", DRAFTED)]
    every = [Arm(fmt + ending, path, draft if ending else None) for fmt, path, ending in pairs]
    own: dict[str, Any] = {"kv_cache_memory_bytes": int(args.kv_gib * pipeline.GIB), "max_num_seqs": max(loads)}
    own["enforce_eager"] = True if args.eager else None
    if args.shape != "reference":
        own |= {"tool_call_parser": None, "generation_config": "vllm"}
        own["max_model_len"] = 2 * (args.prompt_tokens + args.max_tokens) + 64
        own["extra_args"] = ("--max-num-batched-tokens", "4096")
    engine = EngineSpec.model_validate(pipeline.engine(**own))
    for first in range(0, len(every), args.together):
        wave = every[first : first + args.together]
        order = side.schedule([arm.name for arm in wave], loads, args.rounds, seed=first)
        keys = {(r, load, name): f"{name}@{load}#{r}" for r, load, name in order}
        todo = [key for key in keys.values() if "error" in box.cells.get(key, {"error": ""})]
        wanted = [arm for arm in wave if any(key.startswith(f"{arm.name}@") for key in todo)]
        if not wanted:
            continue
        if box.spent >= box.budget:
            box.left_out += todo
            continue
        with ExitStack() as stack:
            servers, failed = side.start(wanted, engine, args.k, args.out / "logs", args.at_once, stack)
            for name, why in failed.items():
                box.keep(f"server {name}", {"error": why})
            for name, server in servers.items():
                box.keep(f"server {name}", side.facts(server, args.out / "logs" / f"{name}.log"))
                for load in loads:
                    side.send(server, warmup, load)
            for place, key in keys.items():
                _, load, name = place
                if key not in todo or name not in servers:
                    continue
                if box.spent >= box.budget:
                    box.left_out.append(key)
                    continue
                try:
                    count = min(len(measured), max(LEAST, args.per_slot * load))
                    box.keep(key, side.send(servers[name], measured[:count], load))
                except (SqtoolError, OSError) as error:
                    box.keep(key, {"error": str(error)})
                    note(f"{key}: {error}")


HEADERS = ("arm", "load", "requests", "TTFT p50/p95 ms", "TPOT p50/p95 ms", "end to end p50/p95/p99 ms",
           "p50 by round ms", "tokens/s", "accepted length", "failed")  # fmt: skip


def row(cells: dict[str, Any], name: str, load: int) -> list[str] | None:
    """One line of the table; None where nothing was measured."""
    found = side.pooled(cells, name, load)
    if found is None:
        return None
    figures = []
    for measure, places, digits in FIGURES:
        values = found[measure]
        figures.append(" / ".join(shown(values[p], digits) for p in places) if values else "-")
    by_round = " / ".join(shown(value, 0) for value in (found["e2e"] or {}).get("rounds", ()))
    return [name, str(load), str(found["requests"]), *figures, by_round, shown(found["tokens_per_s"], 0),
            shown(found.get("acceptance_length")), str(found["failures"])]  # fmt: skip


def report(args: argparse.Namespace, box: TimeBox) -> str:
    """Tables of memory, latency and gains."""
    names = [fmt + ending for fmt in args.formats.split(",") for ending in ("", DRAFTED)]
    loads = [int(load) for load in args.loads.split(",")]
    lines = [heading(box.facts, f"python -m benchmarks.gpu.four_arms --shape {args.shape}")]
    if args.shape != "reference":
        lines.append("Random weights: latency and memory only. Nothing drafted is accepted, by construction.\n")
    servers = []
    for name in names:
        facts = box.cells.get(f"server {name}")
        if facts is not None:
            kernels = facts.get("error") or ", ".join(facts.get("kernels") or ()) or "-"
            weights, tokens = shown(facts.get("weights_gib")), str(facts.get("kv_cache_tokens", "-"))
            device = shown(facts.get("device_bytes"), 2, 1 / pipeline.GIB)
            start = shown(facts.get("start_seconds"), 0)
            servers.append([name, weights, device, tokens, start, kernels.replace("|", "/")])
    cache = f"KV tokens in {args.kv_gib:g} GiB"
    columns = ("server", "weights GiB (with draft)", "device GiB", cache, "start s", "kernels")
    lines += [markdown(columns, servers), ""]
    rows = [found for load in loads for name in names if (found := row(box.cells, name, load)) is not None]
    lines += [markdown(HEADERS, rows), ""]
    rows = []
    for fmt in names[::2]:
        for load in loads:
            gained = side.gains(box.cells, fmt, load) if fmt != "bf16" else None
            if gained is not None:
                cells = [f"{value:.2f} ({low:.2f} to {high:.2f})" for value, low, high in gained.values()]
                rows.append([fmt, str(load), *cells, same(box.cells, fmt, load)])
    if rows:
        lines.append("Median request against bf16 without a draft, as a speed-up (95 % over requests):\n")
        headers = (
            "format",
            "load",
            "quantization",
            "speculation",
            "both",
            "both / product",
            "same answers with a draft",
        )
        lines.append(markdown(headers, rows))
    return "\n".join(lines)


def same(cells: dict[str, Any], fmt: str, load: int) -> str:
    """Greedy answers that a draft left as they were."""
    found = side.agreement(cells, fmt, f"{fmt}+draft", load)
    return "-" if found is None else f"{found[0]}/{found[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of four_arms.json, the plots and logs/")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints that are made (8b: 45 GB)")
    parser.add_argument("--shape", choices=("reference", "8b", "tiny"), default="reference")
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--loads", default="1,8,64", help="requests in flight")
    parser.add_argument("--k", type=int, default=4, help="draft tokens for each verification")
    parser.add_argument("--requests", type=int, default=192, help="most requests of one cell")
    parser.add_argument("--per-slot", type=int, help="requests for each one in flight; default 64, 8b: 4")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--prompt-tokens", type=int, default=128, help="random shapes only")
    parser.add_argument("--kv-gib", type=float, help="KV cache of each server; default 1, 8b: 3")
    parser.add_argument("--together", type=int, default=8, help="servers that run side by side")
    parser.add_argument("--at-once", type=int, default=4, help="servers that start at the same time")
    parser.add_argument("--quantize-at-once", type=int, default=2)
    parser.add_argument("--eager", action="store_true", help="no compilation and no CUDA graphs: starts sooner")
    parser.add_argument("--budget", type=float, default=420, help="seconds after which no further cell begins")
    parser.add_argument("--only-report", action="store_true", help="tables and plots of what is there")
    args = parser.parse_args()
    args.kv_gib = args.kv_gib or (3.0 if args.shape == "8b" else 1.0)
    args.per_slot = args.per_slot or (4 if args.shape == "8b" else 64)
    box = TimeBox(args.out / "four_arms.json", args.budget, {"arguments": {k: str(v) for k, v in vars(args).items()}})
    if not args.only_report:
        measure(args, box)
    print(report(args, box))
    box.close()
    from benchmarks.gpu.plots import draw

    draw(box.cells, args.formats.split(","), [int(load) for load in args.loads.split(",")], args.out, args.shape)
    note(f"{box.spent:.0f} s")


if __name__ == "__main__":
    main()
