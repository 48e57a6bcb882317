"""The main job on this machine's GPU: `sqtool quantize` from calibration to a release, then a server of the release.

    python -m benchmarks.gpu.main_job --out results/main_job [--loads 1,8,64] [--sweep 2,8] [--no-further]

The recipe is recipes/awq4.yaml with a fixed KV cache a server, so that all arms are up at once, with further draft
lengths, an n-gram arm and one with an FP8 KV cache. What is kept in `--out`: the recipe, the command's JSON, report.md,
the verdict, and what the released checkpoint answers to a request with tools. Prints the stages' seconds, the exit code
and that answer.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from benchmarks.gpu import pipeline
from benchmarks.gpu.timebox import heading, machine, markdown, note, shown

FURTHER: dict[str, Any] = {
    "ngram": {"target": "quantized", "speculative": {"method": "ngram"}},
    "fp8_kv": {"target": "quantized", "engine": {"kv_cache_dtype": "fp8"}},
}


def recipe(loads: list[int], lengths: list[int], kv_gib: float, *, further: bool) -> dict[str, Any]:
    """recipes/awq4.yaml for a GPU, under a name of its own."""
    found: dict[str, Any] = yaml.safe_load((pipeline.ROOT / "recipes/awq4.yaml").read_text(encoding="utf-8"))
    found["name"] = "gpu-main"
    found["engine"] = {"kv_cache_memory_bytes": int(kv_gib * pipeline.GIB)}
    own: dict[str, Any] = {"max_concurrency": loads}
    if lengths:
        own["sweep"] = {"num_speculative_tokens": lengths}
    if further:
        own["arms"] = FURTHER
    found["speculate"] = {**found["speculate"], **own}
    return found


def answered(release: Path, engine: dict[str, Any], log: Path) -> dict[str, Any]:
    """What the released checkpoint says to a request with tools; with the kernels that its server reports."""
    import httpx

    from evals.server import VllmServer
    from evals.spec import EngineSpec

    spec = EngineSpec.model_validate(engine)
    traffic = (pipeline.ROOT / "artifacts/reference/data/traffic.jsonl").read_text(encoding="utf-8").splitlines()
    item = next(one for one in map(json.loads, traffic) if one.get("tools") and one["expected"].get("calls"))
    with VllmServer(release, spec, log=log, extra_args=[], root=pipeline.ROOT) as server:
        body = {
            "model": server.served_name,
            "messages": item["messages"],
            "tools": item["tools"],
            "temperature": 0,
            "max_tokens": 128,
        }
        reply = httpx.post(
            f"{server.base_url}/v1/chat/completions",
            json=body,
            headers={"Authorization": f"Bearer {server.api_key}"},
            timeout=60,
        )
        told = server.facts()
    choice = reply.json()["choices"][0]
    return {
        "asked": item["messages"][-1]["content"],
        "expected": item["expected"]["calls"],
        "finish_reason": choice["finish_reason"],
        "tool_calls": [call["function"] for call in choice["message"].get("tool_calls") or ()],
        "content": choice["message"].get("content"),
        "kernels": told.get("kernels"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--loads", default="1,8,64", help="requests in flight")
    parser.add_argument("--sweep", default="2,8", help="further draft lengths, comma-separated; empty: none")
    parser.add_argument("--further", action=argparse.BooleanOptionalAction, default=True, help="n-gram and FP8 KV arms")
    parser.add_argument("--kv-gib", type=float, default=1.0, help="KV cache of each server")
    args = parser.parse_args()
    if find_spec("cyclonedx") is None:
        # Better now than at the release, a quarter of an hour later.
        parser.error("the release needs cyclonedx-python-lib: pip install 'cyclonedx-python-lib[json-validation]'")
    args.out.mkdir(parents=True, exist_ok=True)
    loads, lengths = ([int(part) for part in text.split(",") if part] for text in (args.loads, args.sweep))
    made = recipe(loads, lengths, args.kv_gib, further=args.further)
    path = args.out / "gpu-main.yaml"
    path.write_text(yaml.safe_dump(made, sort_keys=False), encoding="utf-8")
    start = time.monotonic()
    command = [sys.executable, "-m", "sqtool", "quantize", str(path), "--json", "--root", str(pipeline.ROOT)]
    with (args.out / "quantize.log").open("w", encoding="utf-8") as log:
        done = subprocess.run(
            command,
            cwd=pipeline.ROOT,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            check=False,
            env=pipeline.environment(),
        )
    seconds = time.monotonic() - start
    (args.out / "quantize.json").write_text(done.stdout, encoding="utf-8")
    note(f"exit code {done.returncode} after {seconds:.0f} s")
    try:
        document = json.loads(done.stdout)
    except ValueError:
        print((args.out / "quantize.log").read_text(encoding="utf-8")[-3000:])
        return done.returncode or 1
    run = pipeline.ROOT / "artifacts/runs/gpu-main"
    for found in (*run.rglob("report.md"), *run.rglob("verdict.json")):
        if not found.is_symlink():
            shutil.copyfile(found, args.out / found.name)
    print(heading(machine(), "python -m benchmarks.gpu.main_job"))
    print(f"exit code {done.returncode}, {seconds:.0f} s\n")
    rows = [[stage["name"], stage["state"], shown(stage.get("seconds"), 1)] for stage in document["stages"]]
    print(markdown(("stage", "state", "seconds"), rows))
    release = pipeline.ROOT / "artifacts/releases/gpu-main/latest"
    if release.exists():
        said = answered(release.resolve(), {**pipeline.ON_GPU, **made["engine"]}, args.out / "served.log")
        (args.out / "answer.json").write_text(json.dumps(said, indent=1), encoding="utf-8")
        print("\n" + json.dumps(said, indent=1))
    return done.returncode


if __name__ == "__main__":
    raise SystemExit(main())
