"""From what was measured to a score, a threshold and a verdict for each dimension, and what is missing in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from calibrate.activations.spec import ActivationsSpec

COVERED, THIN, UNCOVERED = "COVERED", "THIN", "UNCOVERED"
NAMED = 4
"""Layers or experts that are named; the others are counted."""
Row = Mapping[str, Any]


def judge(spec: ActivationsSpec, found: Mapping[str, Any], *, expects_experts: bool) -> dict[str, dict[str, Any]]:
    """{dimension: {"score" (0 to 1, higher is better), "threshold", "verdict", "missing": [sentence]}}

    activation_range       calibrated over traffic maximum, in the layer where it is lowest
    activation_saturation  share of traffic tokens within the calibrated maximum, likewise
    activation_channels    share of traffic values within the maximum of their own channel, likewise
    kv_range               as activation_range, of the keys and values of each layer (the largest of its heads)
    experts                share of the experts with the tokens that they need

    The first four only with traffic. THIN is below the threshold, UNCOVERED is below it by more than the threshold
    itself is below 1, or an expert that gets no token at all. `expects_experts`: the config speaks of experts; when
    none were seen at work, that is UNCOVERED and says so.
    """
    out: dict[str, dict[str, Any]] = {}
    layers = [layer for layer in found["layers"] if "ratio" in layer]
    heads = [
        {**part, "name": f"layer {row['layer']} {what}"}
        for row in found["kv"]
        for what in ("keys", "values")
        if "ratio" in (part := row[what])
    ]
    if layers:
        out["activation_range"] = _ranges(layers, 1 / spec.max_range_ratio)
        out["activation_saturation"] = _shares(
            layers, "saturated", 1 - spec.max_saturated, "tokens go beyond the calibrated maximum"
        )
        out["activation_channels"] = _shares(
            layers, "beyond_channel", 1 - spec.max_beyond_channel, "values go beyond that of their channel"
        )
    if heads:
        out["kv_range"] = _ranges(heads, 1 / spec.max_kv_ratio)
    if (found["experts"] or expects_experts) and spec.min_tokens_per_expert:
        out["experts"] = _experts(found["experts"], spec.min_tokens_per_expert)
    return out


def _dimension(score: float, threshold: float, missing: Sequence[str], *, lost: bool | None = None) -> dict[str, Any]:
    """`lost`: whether what is below the threshold is UNCOVERED, where the distance does not decide."""
    if score >= threshold:
        return {"score": score, "threshold": threshold, "verdict": COVERED, "missing": []}
    far = 1 - score > 2 * (1 - threshold) if lost is None else lost
    return {"score": score, "threshold": threshold, "verdict": UNCOVERED if far else THIN, "missing": list(missing)}


def _reach(row: Row) -> float:
    """Calibrated over traffic maximum, at most 1."""
    return 0.0 if row["ratio"] is None else min(1.0, 1 / row["ratio"]) if row["ratio"] else 1.0


def _ranges(rows: Sequence[Row], threshold: float) -> dict[str, Any]:
    short = sorted((row for row in rows if _reach(row) < threshold), key=_reach)
    missing = [
        f"{row['name']}: traffic reaches {row['traffic_max']:.4g}, calibration {row['calibration_max']:.4g}"
        + (f" ({row['ratio']:.3g} times)" if row["ratio"] is not None else "")
        + _where(row, "saturated")
        for row in short[:NAMED]
    ]
    return _dimension(min(map(_reach, rows)), threshold, _counted(missing, len(short), "places"))


def _shares(rows: Sequence[Row], key: str, threshold: float, what: str) -> dict[str, Any]:
    short = sorted((row for row in rows if 1 - row[key] < threshold), key=lambda row: -row[key])
    missing = []
    for row in short[:NAMED]:
        text = f"{row['name']}: {row[key]:.2%} of traffic {what}{_where(row, key)}"
        if key == "beyond_channel":
            channels = ", ".join(str(c["channel"]) for c in row["worst_channels"][:NAMED])
            text += f"; worst channels {channels}"
        missing.append(text)
    return _dimension(1 - max(row[key] for row in rows), threshold, _counted(missing, len(short), "layers"))


def _where(row: Row, key: str) -> str:
    """Which kinds of traffic it is, when there is more than one."""
    shares = {kind: shares[key] for kind, shares in row["by_kind"].items() if shares[key] > 0}
    if not shares or len(row["by_kind"]) < 2:
        return ""
    first = sorted(shares, key=lambda kind: (-shares[kind], kind))[:3]
    return ", mostly in " + ", ".join(f"{kind} ({shares[kind]:.2%})" for kind in first)


def _experts(rows: Sequence[Row], minimum: int) -> dict[str, Any]:
    if not rows:
        text = (
            "the config speaks of experts, and this model's routing cannot be watched: nobody knows which experts "
            "calibration reaches (calibrate.activations.min_tokens_per_expert: 0 goes on without knowing)"
        )
        return _dimension(0.0, 1.0, [text], lost=True)
    short = [
        (count, traffic, row["name"], expert, sum(row["traffic"]))
        for row in rows
        for expert, (count, traffic) in enumerate(zip(row["calibration"], row["traffic"], strict=True))
        if count < minimum
    ]
    # First those that traffic needs most.
    short.sort(key=lambda e: (e[0] > 0, -e[1], e[0], e[2], e[3]))
    missing = [
        f"{name}: the router selects expert {expert} for {count} calibration tokens, {minimum} are needed"
        + (f" ({traffic / used:.2%} of the layer's choices on traffic)" if used else "")
        for count, traffic, name, expert, used in short[:NAMED]
    ]
    total = sum(len(row["calibration"]) for row in rows)
    lost = any(count == 0 for count, *_ in short)
    return _dimension(1 - len(short) / total, 1.0, _counted(missing, len(short), "experts"), lost=lost)


def _counted(missing: list[str], total: int, what: str) -> list[str]:
    return [*missing, f"and {total - len(missing)} more {what}"] if total > len(missing) else missing


def kinds_to_add(found: Mapping[str, Any]) -> list[str]:
    """The kinds of traffic that reach furthest beyond their share of values, most of all first: what to add."""
    totals: dict[str, float] = {}
    for layer in found["layers"]:
        for kind, shares in layer.get("by_kind", {}).items():
            totals[kind] = totals.get(kind, 0.0) + shares["beyond_channel"]
    return sorted((k for k in totals if totals[k] > 0), key=lambda k: (-totals[k], k))


def kind_scores(found: Mapping[str, Any]) -> dict[str, float]:
    """By kind of traffic: the share of its values within the calibrated maximum of their channel, mean over layers."""
    rows: dict[str, list[float]] = {}
    for layer in found["layers"]:
        for kind, shares in layer.get("by_kind", {}).items():
            rows.setdefault(kind, []).append(1 - shares["beyond_channel"])
    return {kind: _mean(values) for kind, values in sorted(rows.items())}


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
