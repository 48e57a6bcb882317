"""Quantize a model: the function that the quantize stage calls."""

from __future__ import annotations

import platform
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from quantize.backends import load_backend
from quantize.backends.base import Job, Outcome
from quantize.checkpoint import SIMULATED, copy_companions, quantized_modules
from quantize.fake import fake_quantize
from quantize.headers import Tensor, read_checkpoint
from quantize.layer_report import summarize_layers
from quantize.layers import Model, read_model
from quantize.methods.rtn import RtnSpec
from quantize.mtp import carry_head
from quantize.plan import assign
from quantize.spec import QuantizeSpec
from sqtool.errors import InfrastructureError, UsageError
from sqtool.progress import Progress

LOG = "quantize.log"
CHECKPOINT = "checkpoint"
TOKENS = "tokens.safetensors"
LAYERS = "layers.jsonl"
PLOT = "layers.svg"


def quantize(
    spec: QuantizeSpec,
    *,
    model: Path,
    calibration: Path | None,
    seed: int,
    out: Path,
    progress: Progress,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Quantize the model in folder `model` into `out/checkpoint`; returns the summary.

    `calibration` is the calibrate stage's folder (or its tokens.safetensors), needed by methods that look at data.
    What the libraries print goes to `out/quantize.log`. Same inputs, seed and machine give the same bytes of weights.

    Raises UsageError for what the recipe can mend, DataError for damaged model files, InfrastructureError when memory
    or disk ran out or a scale came out as NaN.
    """
    if spec.checkpoint is not None:
        raise UsageError("quantize.checkpoint names a finished checkpoint: there is nothing to quantize")
    started = time.monotonic()
    reset_peak_memory()
    described = read_model(model)
    assign(spec, described)
    tokens = _tokens(spec, calibration)
    checkpoint = out / CHECKPOINT
    checkpoint.mkdir(parents=True, exist_ok=True)
    (out / LAYERS).unlink(missing_ok=True)
    methods = [step.method for step in spec.methods]
    if spec.simulated:
        outcome = _simulate(methods[0], described, model, checkpoint, progress)
    else:
        job = Job(
            model=model,
            methods=methods,
            tokens=tokens,
            out=checkpoint,
            log=out / LOG,
            seed=seed,
            batch_size=spec.batch_size,
            precision=spec.precision,
            layers=out / LAYERS,
            sequential_offload_device=spec.sequential_offload_device,
            layer_report=spec.layer_report,
            zero_groups=spec.zero_groups,
            calibrate_all_experts=spec.calibrate_all_experts,
            max_shard_size=spec.max_shard_size,
            trust_remote_code=trust_remote_code,
        )
        outcome = load_backend(spec.backend).run(job, progress)
        copy_companions(model, checkpoint)
        if head := carry_head(model, checkpoint):
            outcome.notes.append(
                f"the MTP head ({len(head)} tensors) went over in 16 bits, so that a server can draft with it"
            )
        _check_scales(checkpoint)
    for note in outcome.notes:
        progress.note(note)
    written = read_checkpoint(checkpoint)
    stored = set(outcome.layers) if spec.simulated else set(quantized_modules(written))
    report = summarize_layers(out / LAYERS, out / PLOT)
    return {
        "methods": [step.model_dump() for step in spec.methods],
        "backend": spec.backend,
        "simulated": spec.simulated,
        "checkpoint": CHECKPOINT,
        "layers_quantized": len(outcome.layers),
        "layers_left": sorted(set(described.linears) - stored),
        "bytes_before": described.nbytes,
        "bytes_after": sum(t.nbytes for t in written.values()),
        "bits_per_weight": _bits_per_weight(spec, written, outcome),
        "formats": dict(sorted(Counter(t.dtype for t in written.values()).items())),
        "seconds": round(time.monotonic() - started, 2),
        "peak_rss_bytes": peak_memory(),
        "notes": outcome.notes,
        "details": outcome.details,
        **({"layers": report} if report else {}),
        "versions": {"python": platform.python_version(), **outcome.versions},
    }


def _tokens(spec: QuantizeSpec, calibration: Path | None) -> Path | None:
    if not spec.needs_calibration:
        return None
    if calibration is None:
        asking = [s.method.name for s in spec.methods if s.method.needs_calibration]
        names = ", ".join(asking) or "layer_report: outputs"
        raise UsageError(f"{names} needs calibration data and none was given", remedy="Add a calibrate section.")
    path = calibration / TOKENS if calibration.is_dir() else calibration
    if not path.is_file():
        raise UsageError(f"there is no {path}", remedy="Run the calibrate stage first.")
    return path


def _simulate(method: object, described: Model, model: Path, checkpoint: Path, progress: Progress) -> Outcome:
    from importlib.metadata import version

    assert isinstance(method, RtnSpec)
    scheme = method.weights()
    with progress.task(f"quantize: simulate {scheme.bits}-bit weights in 16 bits"):
        layers = fake_quantize(
            model,
            checkpoint,
            bits=scheme.bits,
            group_size=scheme.group_size or 128,
            symmetric=scheme.symmetric,
            targets=method.targets,
            ignore=method.ignore,
        )
    note = f"simulated: {scheme.bits}-bit values in 16-bit weights, so neither smaller nor faster (see {SIMULATED})"
    weights = sum(described.linears[name].weights for name in layers)
    return Outcome({name: version(name) for name in ("torch", "safetensors")}, layers, weights, [note])


def _bits_per_weight(spec: QuantizeSpec, written: dict[str, Tensor], outcome: Outcome) -> float:
    """Bits that the checkpoint stores per weight of its quantized layers, scales and zero points included."""
    if spec.simulated:
        stored = sum(written[f"{name}.weight"].nbytes for name in outcome.layers)
    else:
        stored = sum(t.nbytes for tensors in quantized_modules(written).values() for t in tensors)
    return round(8 * stored / outcome.weights, 3) if outcome.weights else 0.0


def _check_scales(checkpoint: Path) -> None:
    """Raises InfrastructureError that names the layer when a scale is NaN, infinite or zero."""
    import torch
    from safetensors import safe_open

    for path in sorted({t.file for t in read_checkpoint(checkpoint).values()}):
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                if not name.endswith(("_scale", ".scales")):
                    continue
                scale = tensors.get_tensor(name).float()
                if not torch.isfinite(scale).all() or (scale == 0).any():
                    raise InfrastructureError(
                        f"{name.rsplit('.', 1)[0]} got a scale that is zero or not finite",
                        remedy="Look for NaN in the model's weights, or leave the layer out with ignore.",
                    )


def reset_peak_memory() -> None:
    """Start counting this process's peak memory anew, where the system can (Linux)."""
    if sys.platform == "linux":
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return


def peak_memory() -> int:
    """Most resident memory of this process in bytes, since `reset_peak_memory` where the system tells."""
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
