"""Both passes over the unmodified model, and what they found as plain numbers."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from calibrate.activations.histograms import RATIO_EDGES, count_ratios
from calibrate.activations.traffic import Sample, batches
from sqtool.progress import SILENT, Progress

if TYPE_CHECKING:
    import torch

    from calibrate.activations.watch import Range, Watch

WORST = 8
"""Channels that are named of each layer."""


def measure(
    model: Any,
    calibration: Sequence[Sample],
    traffic: Sequence[Sample],
    *,
    batch_tokens: int = 4096,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Run `calibration` for the maxima, then `traffic` for what lies beyond them (without any, experts alone say
    something).

    Returns {"calibration_tokens", "traffic_tokens", "kinds", "layers": [R], "kv": [{"layer", "keys": R, "values": R}],
    "experts": [E], "channel_ratios": {"edges", "counts"} (traffic over calibration maximum of every channel of every
    layer), "non_finite": [layer]} with, of the magnitudes |x| that enter a layer,

    R = {"name", "also" (layers with the same input), "calibration_max", "traffic_max", "ratio" (traffic over
    calibration; None when nothing was calibrated), "saturated" (share of traffic tokens with a value beyond the
    calibrated maximum), "beyond_channel" (share of traffic values beyond the maximum of their own channel; a channel
    of keys and values is a head), "worst_channels": [{"channel", "calibration_max", "traffic_max", "ratio",
    "beyond" (share of traffic tokens)}], "by_kind": {kind: {"saturated", "beyond_channel"}}}

    E = {"name", "calibration": [tokens that the router selected each expert for], "traffic": [...]}.

    Memory does not grow with the number of tokens, and order does not matter: both are sorted into batches here.
    """
    watch = observe(model, calibration, traffic, batch_tokens=batch_tokens, progress=progress)
    return figures(watch, calibration, traffic)


def observe(
    model: Any,
    calibration: Sequence[Sample],
    traffic: Sequence[Sample],
    *,
    batch_tokens: int = 4096,
    progress: Progress = SILENT,
) -> Watch:
    """Both passes, and what was seen in them."""
    from calibrate.activations.watch import Watch

    kinds = _kinds(traffic)
    watch = Watch(len(kinds))
    with watch.on(model):
        for name, samples in (("calibration", calibration), ("traffic", traffic)):
            watch.comparing = name == "traffic"
            total = sum(len(sample.tokens) for sample in samples)
            with progress.task(f"calibrate: activations of {name}", total=total) as task:
                for group in batches(samples, batch_tokens):
                    run_batch(model, group, kinds, watch)
                    task.advance(sum(len(sample.tokens) for sample in group))
    return watch


def figures(watch: Watch, calibration: Sequence[Sample], traffic: Sequence[Sample]) -> dict[str, Any]:
    """What `measure` returns, of what `observe` saw."""
    kinds = _kinds(traffic)
    return {
        "calibration_tokens": sum(len(sample.tokens) for sample in calibration),
        "traffic_tokens": sum(len(sample.tokens) for sample in traffic),
        "kinds": kinds,
        **_found(watch, kinds),
    }


def _kinds(traffic: Sequence[Sample]) -> list[str]:
    return sorted({sample.kind for sample in traffic})


def run_batch(model: Any, group: Sequence[Sample], kinds: Sequence[str], watch: Watch) -> None:
    """One batch, padded on the right and masked. Without the output head: its input is no layer to be quantized."""
    import torch

    from calibrate.activations.watch import Batch

    longest = max(len(sample.tokens) for sample in group)
    ids = torch.zeros(len(group), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, real, sample in zip(ids, mask, group, strict=True):
        row[: len(sample.tokens)] = torch.tensor(sample.tokens)
        real[: len(sample.tokens)] = 1
    number = {kind: i for i, kind in enumerate(kinds)}
    kind_of = torch.tensor([number.get(sample.kind, 0) for sample in group])
    batch = Batch(
        keep=mask.flatten().bool(),
        kinds=kind_of.repeat_interleave(torch.tensor([len(sample.tokens) for sample in group])),
    )
    body = model.base_model
    device = model.get_input_embeddings().weight.device
    inputs: dict[str, Any] = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    cache = _spied_cache(body, watch)
    if cache is not None:
        inputs["past_key_values"] = cache
    with torch.inference_mode(), watch.running(batch):
        body(**inputs, use_cache=cache is not None)


def _spied_cache(body: Any, watch: Watch) -> Any:
    """A KV cache that shows what it is given; None for a model that takes none of transformers' own."""
    from transformers import DynamicCache

    if "past_key_values" not in inspect.signature(body.forward).parameters:
        return None
    cache = DynamicCache(config=body.config)
    update = cache.update

    def spy(key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        watch.cache(layer_idx, key_states, value_states)
        return update(key_states, value_states, layer_idx, *args, **kwargs)

    cache.update = spy
    return cache


def _found(watch: Watch, kinds: Sequence[str]) -> dict[str, Any]:
    # A layer that calibration came to and no traffic (or the other way round) is there with what is known. One that was
    # only ever called without a token, as an idle expert of a list is, is not.
    layers = [_range(found, kinds) for found in watch.ranges.values() if found.maximum is not None]
    kv: list[dict[str, Any]] = [
        {"layer": layer, "keys": _range(watch.keys[layer], kinds), "values": _range(watch.values[layer], kinds)}
        for layer in sorted(watch.keys)
    ]
    places = [*layers, *(part for row in kv for part in (row["keys"], row["values"]))]
    return {
        "layers": layers,
        "kv": kv,
        "experts": [
            {"name": name, "calibration": routing.calibration.tolist(), "traffic": routing.traffic.tolist()}
            for name, routing in watch.routing.items()
        ],
        "channel_ratios": {
            "edges": list(RATIO_EDGES),
            "counts": [sum(bins) for bins in zip(*(map(_bins, watch.ranges.values())), strict=True)],
        },
        "non_finite": [r["name"] for r in places if r.pop("non_finite")],
    }


def _range(found: Range, kinds: Sequence[str]) -> dict[str, Any]:
    import torch

    assert found.maximum is not None
    maximum = found.maximum.float().cpu()
    traffic = torch.zeros_like(maximum) if found.traffic is None else found.traffic.float().cpu()
    whole = {
        "name": found.names[0],
        "also": found.names[1:],
        "non_finite": not bool(torch.isfinite(maximum).all() and torch.isfinite(traffic).all()),
    }
    if whole["non_finite"]:
        return {**whole, "calibration_max": None, "traffic_max": None}
    whole["calibration_max"] = _short(float(maximum.max()))
    if found.traffic is None or found.beyond is None:
        return whole
    beyond = found.beyond.cpu()
    shares = beyond.double() / found.tokens
    return {
        **whole,
        "traffic_max": _short(float(traffic.max())),
        "ratio": _ratio(float(traffic.max()), float(maximum.max())),
        "saturated": _short(found.saturated / found.tokens),
        "beyond_channel": _short(float(shares.mean())),
        "worst_channels": _worst(maximum.tolist(), traffic.tolist(), shares.tolist()),
        "by_kind": _by_kind(found, kinds, channels=len(maximum)),
    }


def _bins(found: Range) -> list[int]:
    if found.maximum is None or found.traffic is None:
        return count_ratios([])
    pairs = zip(found.traffic.float().tolist(), found.maximum.float().tolist(), strict=True)
    return count_ratios(_excess(traffic, maximum) for traffic, maximum in pairs)


def _excess(traffic: float, maximum: float) -> float:
    """Traffic over calibration maximum, infinite where calibration saw nothing but 0."""
    if maximum:
        return traffic / maximum
    return math.inf if traffic else 1.0


def _worst(maximum: list[float], traffic: list[float], shares: list[float]) -> list[dict[str, Any]]:
    """The channels with most traffic tokens beyond them; among equals those that are exceeded by most."""
    excess = [_excess(t, m) for t, m in zip(traffic, maximum, strict=True)]
    places = sorted((i for i, share in enumerate(shares) if share), key=lambda i: (-shares[i], -excess[i], i))
    return [
        {
            "channel": i,
            "calibration_max": _short(maximum[i]),
            "traffic_max": _short(traffic[i]),
            "ratio": _ratio(traffic[i], maximum[i]),
            "beyond": _short(shares[i]),
        }
        for i in places[:WORST]
    ]


def _by_kind(found: Range, kinds: Sequence[str], *, channels: int) -> dict[str, Any]:
    assert found.tokens_of is not None
    assert found.saturated_of is not None
    assert found.values_of is not None
    rows = zip(kinds, found.tokens_of.tolist(), found.saturated_of.tolist(), found.values_of.tolist(), strict=True)
    return {
        kind: {"saturated": _short(saturated / tokens), "beyond_channel": _short(values / tokens / channels)}
        for kind, tokens, saturated, values in rows
        if tokens
    }


def _ratio(traffic: float, calibration: float) -> float | None:
    excess = _excess(traffic, calibration)
    return _short(excess) if math.isfinite(excess) else None


def _short(number: float) -> float:
    """Six digits: what is more is noise of the arithmetic."""
    return float(f"{number:.6g}")
