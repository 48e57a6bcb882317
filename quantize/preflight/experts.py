"""Mixtures of experts: which experts the calibration set hardly reaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sqtool.errors import CoverageError
from sqtool.files import read_json

SHOWN = 3


def judge_experts(routed: Mapping[str, Sequence[int]], *, minimum: int, calibrate_all_experts: bool) -> tuple[str, ...]:
    """Warnings about experts to which the router sent fewer than `minimum` calibration tokens.

    `routed`: for each layer's router the tokens that it sent to each of its experts. With all experts calibrated such
    an expert has seen every token, only not its own kind, which is a warning; without, its scales rest on hardly
    anything, and CoverageError is raised.
    """
    rare = [
        (f"{router} expert {number}", tokens)
        for router, counts in routed.items()
        for number, tokens in enumerate(counts)
        if tokens < minimum
    ]
    if not rare:
        return ()
    named = ", ".join(f"{name} ({tokens})" for name, tokens in rare[:SHOWN]) + (", ..." if len(rare) > SHOWN else "")
    total = sum(len(counts) for counts in routed.values())
    text = f"{len(rare)} of {total} experts were sent fewer than {minimum} calibration tokens by their router: {named}"
    if calibrate_all_experts:
        return (f"{text}; they are calibrated on the tokens of others",)
    raise CoverageError(
        text,
        remedy="Calibrate with more or other conversations, or set quantize.calibrate_all_experts: true.",
    )


def check_experts(activations: Path, *, minimum: int, calibrate_all_experts: bool) -> tuple[str, ...]:
    """`judge_experts` of what the calibrate stage saw, in its activations.json (`experts`: for each layer its `name`
    and, in `calibration`, the tokens of each expert). Nothing where it did not look, or a minimum of 0."""
    if not minimum or not activations.is_file():
        return ()
    routed = {str(row["name"]): list(row["calibration"]) for row in read_json(activations)["experts"]}
    return judge_experts(routed, minimum=minimum, calibrate_all_experts=calibrate_all_experts)
