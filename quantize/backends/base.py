"""What a backend is asked, what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from quantize.methods.base import MethodSpec
from sqtool.progress import Progress


@dataclass(frozen=True)
class Job:
    """One model to quantize."""

    model: Path
    """Folder of the 16-bit model (safetensors)."""
    methods: Sequence[MethodSpec]
    """In order, already checked."""
    tokens: Path | None
    """safetensors file with `input_ids` and `position_ids` [rows, row length], int32, None when no method needs data.
    A position of 0 starts a conversation that must not see those before it. With a `loss_mask` (same shape, 0 or 1)
    methods that minimize a loss over tokens should look at those with 1 only."""
    out: Path
    """The checkpoint folder to make."""
    log: Path
    """File for everything that the backend and its libraries print."""
    seed: int
    batch_size: int
    precision: str
    layers: Path
    """JSON lines file for what each layer lost, written as the work goes on."""
    sequential_offload_device: Literal["auto", "cpu"] = "auto"
    layer_report: Literal["weights", "outputs", "off"] = "weights"
    zero_groups: Literal["stop", "allow"] = "stop"
    calibrate_all_experts: bool = True
    max_shard_size: str = "5GB"
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a backend says about its work."""

    versions: dict[str, str]
    layers: list[str]
    """Names of the layers that it quantized, as its own model calls them."""
    weights: int = 0
    """Weights in those layers; scales and zero points do not count."""
    notes: list[str] = field(default_factory=list)
    """What the user should know, e.g. layers where a method fell back to another."""
    details: dict[str, Any] = field(default_factory=dict)


class Backend(Protocol):
    """Quantizes a folder into another folder."""

    def run(self, job: Job, progress: Progress) -> Outcome:
        """Write weights and config.json into `job.out` (the caller adds tokenizer and templates).

        Raises UsageError for what the recipe can mend, InfrastructureError when memory or disk ran out.
        """
