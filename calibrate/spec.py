"""The recipe section `calibrate:`. Keys follow llm-compressor where it has them.

calibrate:
  sources: [{path: data/calls.jsonl, weight: 2}, {path: data/other.jsonl}]
  num_calibration_samples: 64
  max_seq_length: 512
  coverage: {min_per_kind: 2, kinds: [tool_simple, lookup]}
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from sqtool.spec import Spec


class SourceSpec(Spec):
    """A JSONL file of conversations and its share of the set."""

    path: str = Field(min_length=1)
    weight: float = Field(default=1.0, gt=0)


class CoverageSpec(Spec):
    """The least that the set must hold. A minimum of 0 asks for nothing."""

    min_per_kind: int = Field(default=2, ge=0)
    """Conversations of each kind that the pool has, and of each kind in `kinds`."""
    min_per_tool: int = Field(default=0, ge=0)
    """Conversations that call each tool that the pool's answers call, and each tool in `tools`."""
    kinds: list[str] | None = None
    """Kinds that must be there, whatever the pool has."""
    tools: list[str] | None = None
    """Tools that must be called, whatever the pool has."""

    @field_validator("kinds", "tools")
    @classmethod
    def _no_repeats(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and len(set(value)) != len(value):
            raise ValueError("a name is there twice")
        return value


class CalibrateSpec(Spec):
    """How the calibration set is built."""

    sources: list[SourceSpec] = Field(default=[])
    """Without any: `data/calibration.jsonl` beside the model's folder, which the reference model has."""
    num_calibration_samples: int = Field(default=128, ge=1)
    """Conversations to choose."""
    max_seq_length: int = Field(default=512, ge=16)
    """Tokens kept of a conversation, and the length of a packed row."""
    selection: Literal["stratified", "random"] = "stratified"
    """`stratified` gives each kind its share of the pool and never less than coverage.min_per_kind; `random` does
    not look at kinds."""
    shuffle: bool = True
    """Choose by the recipe's seed; otherwise the first ones of each source."""
    coverage: CoverageSpec = CoverageSpec()
