"""What each arm costs to operate: processes, models in memory, knobs, and how it fails at night."""

from __future__ import annotations

from dataclasses import dataclass

from sqtool.advise.measured import BASELINE, QUANTIZED, Measured, number

OWN_MODEL = ("draft_model", "eagle", "eagle3")
"""Methods whose drafter has weights of its own beside the target's."""
KNOBS = {
    "quantized": ("scheme and ignored layers", "the kernel that reads it"),
    "speculates": ("num_speculative_tokens", "method"),
    "draft": ("the draft checkpoint",),
}
FAILS = {
    "quantized": (
        "another device class has another kernel, or none: evaluate again where it is served",
        "answers get worse on traffic that the tasks do not cover, and nothing crashes",
    ),
    "speculates": (
        "traffic or target changes, acceptance falls, and so does speed: watch vllm:spec_decode_num_accepted_tokens",
        "at a full batch the verification of drafts costs more than it saves",
        "answers get worse: restart without --speculative-config, which leaves the checkpoint alone",
    ),
    "draft": (
        "the draft's weights and KV cache take memory from the batch",
        "a draft of another tokenizer accepts nothing",
    ),
}


@dataclass(frozen=True)
class Complexity:
    """`memory_bytes` and `start_seconds` are as measured, None where they were not."""

    processes: int
    models: int
    memory_bytes: float | None
    start_seconds: float | None
    knobs: tuple[str, ...]
    failure_modes: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{self.processes} server", f"{self.models} model{'s' if self.models > 1 else ''}"]
        if self.memory_bytes is not None:
            parts.append(f"{_size(self.memory_bytes)} of weights")
        if self.start_seconds is not None:
            parts.append(f"starts in {self.start_seconds:.0f} s")
        return ", ".join([*parts, f"{len(self.knobs)} knobs" if self.knobs else "no further knobs"])


def _size(number_of_bytes: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if number_of_bytes >= scale:
            return f"{number_of_bytes / scale:.3g} {unit}"
    return f"{number_of_bytes / 1e3:.3g} kB"


def complexity(measured: Measured | None, arm: str) -> Complexity:
    """Of one arm; vLLM drafts in the server's own process, so a drafter is a model more and no process."""
    traits = _traits(measured, arm)
    weights = start = None
    if measured is not None:
        own = measured.memory(arm, "weights_bytes")
        drafted = measured.memory(arm, "draft_bytes") if "draft" in traits else 0.0
        weights = None if own is None or drafted is None else own + drafted
        start = number(measured.arms.get(arm, {}).get("start_seconds"))
    return Complexity(
        processes=1,
        models=2 if "draft" in traits else 1,
        memory_bytes=weights,
        start_seconds=start,
        knobs=tuple(knob for trait in traits for knob in KNOBS[trait]),
        failure_modes=tuple(mode for trait in traits for mode in FAILS[trait]),
    )


def rank(measured: Measured, arm: str) -> tuple[int, int, str]:
    """Sorts from the fewest moving parts to the most; of two draft lengths the shorter is the simpler."""
    traits = _traits(measured, arm)
    other = 0 if arm in (BASELINE, QUANTIZED, "speculative", "both") else 1
    return len(traits), (measured.draft_tokens(arm) or 0) + other, arm


def _traits(measured: Measured | None, arm: str) -> tuple[str, ...]:
    if measured is None:
        return ("quantized",) if arm == QUANTIZED else ()
    traits = ["quantized"] if measured.target(arm) == QUANTIZED else []
    if measured.speculates(arm):
        traits.append("speculates")
        if measured.config(arm).get("method", "draft_model") in OWN_MODEL:
            traits.append("draft")
    return tuple(traits)
