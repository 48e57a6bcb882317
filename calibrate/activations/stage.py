"""Coverage at the model level, as the calibrate stage asks for it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from calibrate.activations.histograms import overlap
from calibrate.activations.judge import COVERED, judge, kind_scores, kinds_to_add
from calibrate.activations.spec import ActivationsSpec
from calibrate.activations.traffic import Sample, sample, within
from calibrate.conversation import Record
from sqtool.errors import DataError, InfrastructureError
from sqtool.files import read_json, write_json
from sqtool.progress import Progress

ACTIVATIONS = "activations.json"
Key = TypeVar("Key")
"""Whatever the caller knows a conversation of the sources by."""
ROUNDS = 3
"""How often conversations are looked for and the whole is measured again."""
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")
"""Keys under which transformers' configs say how many experts a layer has."""


def model_coverage(
    spec: ActivationsSpec | None,
    calibration: Iterable[tuple[str, Sequence[int]]],
    traffic: Iterable[Record] | None,
    *,
    model: Path,
    tokenizer: Any,
    out: Path,
    progress: Progress,
    trust_remote_code: bool = False,
    spare: Callable[[Sequence[str]], Iterable[tuple[Key, str, Sequence[int]]]] | None = None,
) -> tuple[dict[str, dict[str, Any]], list[Key]]:
    """Run the unmodified model over the calibration set (kind and token ids of each conversation) and a sample of the
    traffic (whole conversations, answers included; None when nobody gave any, and then only experts can be counted).

    Returns ({dimension: {"score", "threshold", "verdict", "missing"}} as `judge` describes it, empty when there is
    nothing to measure, and the keys of conversations that were added to the set for what it lacks). `spare`, of the
    kinds of traffic that reach furthest beyond the set: what could be added, in the order in which it is looked at
    (key, kind and token ids of each). Writes `out/activations.json`, the figures layer by layer.

    Raises DataError when the model gives NaN, InfrastructureError when it cannot be loaded or run.
    """
    if spec is None:
        return {}, []
    experts = declares_experts(read_json(model / "config.json"))
    if traffic is None:
        progress.note(
            "calibrate: there is no traffic sample, so nobody knows whether traffic goes beyond the calibrated ranges"
        )
        if not experts:
            return {}, []
    from calibrate.activations.load import load_model

    started = time.monotonic()
    served, lost = sample(traffic or [], tokenizer, max_tokens=spec.traffic_tokens, max_length=spec.max_length)
    if lost:
        progress.note(f"calibrate: {lost} conversations of the traffic cannot be rendered and are left out")
    chosen = within([Sample(tuple(ids), kind) for kind, ids in calibration], spec.calibration_tokens)
    with progress.task("calibrate: load the model"):
        network = load_model(model, spec, trust_remote_code=trust_remote_code)
    try:
        found, dimensions, added = _mended(spec, network, chosen, served, experts, spare, progress)
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise InfrastructureError(
            f"{type(network).__name__} cannot be watched: {type(error).__name__}: {str(error).partition(chr(10))[0]}",
            remedy="Lower calibrate.activations.batch_tokens where memory ran out; otherwise `calibrate: {activations: "
            "null}` leaves coverage at the model level out.",
        ) from error
    del network
    if found["non_finite"]:
        raise DataError(
            model,
            f"gives NaN or infinity at {found['non_finite'][0]}",
            remedy="The model is broken as it is, before any quantization; or its dtype is too narrow for it.",
        )
    limits = {"ratio": spec.max_range_ratio, "saturated": spec.max_saturated}
    write_json(out / ACTIVATIONS, {"dimensions": dimensions, "limits": limits, **found})
    for name, row in dimensions.items():
        if row["verdict"] != COVERED:
            progress.note(f"calibrate: {name} is {row['verdict']}: {row['missing'][0]}")
    progress.note(
        f"calibrate: {found['calibration_tokens']} tokens of calibration and {found['traffic_tokens']} of traffic "
        f"through the model in {time.monotonic() - started:.1f} s"
    )
    return dimensions, added


def _mended(
    spec: ActivationsSpec,
    network: Any,
    chosen: list[Sample],
    served: Sequence[Sample],
    experts: bool,
    spare: Callable[[Sequence[str]], Iterable[tuple[Key, str, Sequence[int]]]] | None,
    progress: Progress,
) -> tuple[dict[str, Any], dict[str, dict[str, Any]], list[Key]]:
    """(what was found, judged, what was added): measured, and again with what was added, as long as that helps."""
    from calibrate.activations.fill import Search, missing
    from calibrate.activations.measure import figures, observe

    added: list[Key] = []
    search: Search[Key] | None = None
    for rounds in itertools.count():
        watch = observe(network, chosen, served, batch_tokens=spec.batch_tokens, progress=progress)
        found = figures(watch, chosen, served)
        dimensions = {} if found["non_finite"] else judge(spec, found, expects_experts=experts)
        picked: list[tuple[Key, Sample]] = []
        if spare is not None and rounds < ROUNDS and any(row["verdict"] != COVERED for row in dimensions.values()):
            lacks = missing(watch, spec)
            if search is None:
                others = ((key, Sample(tuple(ids), kind)) for key, kind, ids in spare(kinds_to_add(found)))
                sizes = {"tokens": spec.calibration_tokens, "batch_tokens": spec.batch_tokens}
                search = Search(network, lacks, others, **sizes, progress=progress)
            picked = search.pick(lacks)
        if not picked:
            about = {"add_kinds": kinds_to_add(found), "kind_scores": kind_scores(found)}
            return {**about, "overlap": overlap(chosen, served), **found}, dimensions, added
        added += [key for key, _ in picked]
        chosen = [*chosen, *(one for _, one in picked)]
    raise AssertionError("it ends when nothing more is picked")


def declares_experts(config: dict[str, Any]) -> bool:
    """Does config.json speak of more than one expert a layer?"""
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    return any(isinstance(n := part.get(key), int) and n > 1 for part in parts for key in EXPERTS)
