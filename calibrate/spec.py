"""The recipe section `calibrate:`. Keys follow llm-compressor where it has them.

calibrate:
  sources: [{path: data/calls.jsonl, weight: 2}, {dataset: data/other, split: train}]
  num_calibration_samples: 64
  max_seq_length: 512
  match: data/traffic.jsonl
  coverage: {min_per_kind: 2, min_score: {scripts: 0.95}}
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from calibrate.activations.spec import ActivationsSpec
from sqtool.spec import Spec

JSONL_SUFFIXES = (".jsonl", ".ndjson")
TEXT_SUFFIXES = (".txt", ".md")
Format = Literal["jsonl", "parquet", "text"]


class SourceSpec(Spec):
    """One place that conversations come from, and its share of the set."""

    path: str | None = Field(
        default=None,
        min_length=1,
        description="A file, or a folder of files: JSONL (conversations or a request log), Parquet, plain text.",
    )
    dataset: str | None = Field(
        default=None, min_length=1, description="Instead of path: a folder that `datasets` saved, or a hub name."
    )
    name: str | None = Field(default=None, description="dataset: the configuration's name.")
    split: str = Field(default="train", description="dataset: which split.")
    revision: str | None = Field(default=None, description="dataset: branch, tag or commit on the hub.")
    streaming: bool = Field(default=False, description="dataset: read from the hub without downloading it whole.")
    format: Literal["auto", "jsonl", "parquet", "text"] = Field(
        default="auto", description="What the files of path are; auto goes by their ending."
    )
    documents: Literal["paragraph", "file"] = Field(
        default="paragraph", description="Plain text: blank lines part the documents, or a file is one."
    )
    kind: str | None = Field(default=None, min_length=1, description="Kind of the records that name none.")
    weight: float = Field(default=1.0, gt=0, description="Share of the set, relative to the other sources.")

    @model_validator(mode="after")
    def _one_place(self) -> SourceSpec:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give either path (files) or dataset (a folder of `datasets`, or a hub name)")
        wrong = {"name", "split", "revision", "streaming"} & self.model_fields_set if self.path is not None else set()
        if wrong:
            raise ValueError(f"{', '.join(sorted(wrong))} goes with dataset, not with path")
        return self

    def __str__(self) -> str:
        return self.path or f"{self.dataset}" + (f"/{self.name}" if self.name else "") + f"[{self.split}]"


class MinScores(Spec):
    """The least score of each dimension, in [0, 1]: the share of the traffic that the set covers. 0 only measures.

    Dimensions that may be open-ended (every conversation has its own tools, say) are measured and do not refuse where
    the traffic sample shows that they are, unless the recipe names them here."""

    kinds: float = Field(default=0.9, ge=0, le=1, description="Kinds of task.")
    tools: float = Field(default=0.8, ge=0, le=1, description="Tools that are called.")
    parameters: float = Field(default=0.8, ge=0, le=1, description="Parameters that calls give.")
    types: float = Field(default=0.9, ge=0, le=1, description="JSON Schema types of the parameters given.")
    enum_values: float = Field(default=0.8, ge=0, le=1, description="Values given to parameters with an enum.")
    n_tools: float = Field(default=0.8, ge=0, le=1, description="How many tools are offered.")
    scripts: float = Field(default=0.95, ge=0, le=1, description="Writing systems.")
    roles: float = Field(default=0.95, ge=0, le=1, description="Roles of messages, tool calls and results.")
    system_prompts: float = Field(default=0.8, ge=0, le=1, description="System prompts, word for word.")
    prompt_length: float = Field(default=0.9, ge=0, le=1, description="Tokens of the prompt, in powers of two.")
    output_length: float = Field(default=0.9, ge=0, le=1, description="Tokens of the answer, in powers of two.")
    special_tokens: float = Field(default=0.95, ge=0, le=1, description="The tokenizer's special and added tokens.")
    tokens: float = Field(default=0.7, ge=0, le=1, description="Tokens of the vocabulary, as often as they occur.")


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
    min_score: MinScores = Field(
        default=MinScores(), description="The least score of each dimension against the traffic sample and the evals."
    )
    evals: bool = Field(
        default=True, description="Measure against the evaluation's items as well, not only against the traffic."
    )
    refuse: Literal["thin", "uncovered", "never"] = Field(
        default="thin",
        description="The verdict from which nothing is quantized: a score below its minimum is THIN, below half of it "
        "UNCOVERED; too few of a kind or tool is THIN.",
    )
    fix: bool = Field(
        default=False, description="Add conversations of the sources that hold what is missing, beyond the budget."
    )

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
    target_tokens: int | None = Field(
        default=None, ge=1, description="Instead of num_calibration_samples: tokens to choose conversations for."
    )
    max_seq_length: int = Field(default=512, ge=16)
    """Tokens kept of a conversation, and the length of a packed row."""
    on_too_long: Literal["error", "truncate", "skip"] = Field(
        default="error",
        description="A conversation longer than the model's context: an error, cut like any other, or left out. Plain "
        "text is always cut.",
    )
    selection: Literal["stratified", "random", "coverage"] = "stratified"
    """`stratified` gives each kind its share of the pool and never less than coverage.min_per_kind; `random` does
    not look at kinds; `coverage` picks greedily what covers the traffic (or the pool, without `match`) best."""
    strata: Literal["kind", "kind_length"] = Field(
        default="kind", description="stratified: by kind, or by kind and length of the prompt (always so with match)."
    )
    match: str | None = Field(
        default=None,
        min_length=1,
        description="JSONL sample of the traffic. The choice follows its kinds and lengths, coverage is measured "
        "against it. Without: the pool's own proportions, and the sample beside the reference model for coverage.",
    )
    shuffle: bool = True
    """Choose by the recipe's seed; otherwise the first ones of each source."""
    pool_limit: int = Field(
        default=10_000,
        ge=1,
        description="Conversations of each source that are considered, drawn evenly by the seed; bounds memory.",
    )
    near_duplicates: float | None = Field(
        default=0.9,
        gt=0,
        le=1,
        description="Likeness (Jaccard, by MinHash) from which one of two is left out; or null.",
    )
    contamination: Literal["error", "warn", "drop", "off"] = Field(
        default="error", description="A conversation that shares a question or 13 words in a row with a test item."
    )
    loss_mask: Literal["none", "assistant"] = Field(
        default="none", description="assistant: AWQ's loss looks at the assistant's tokens only."
    )
    on_bad_line: Literal["error", "skip"] = Field(
        default="error", description="A line that is no conversation: an error, or left out and counted."
    )
    coverage: CoverageSpec = CoverageSpec()
    """What the set must cover, and what happens when it does not."""
    activations: ActivationsSpec | None = ActivationsSpec()
    """What the model itself sees of calibration and traffic; null leaves it out."""

    @model_validator(mode="after")
    def _one_budget(self) -> CalibrateSpec:
        if self.target_tokens is not None and "num_calibration_samples" in self.model_fields_set:
            raise ValueError("give num_calibration_samples or target_tokens, not both")
        return self

    @property
    def considered(self) -> int:
        """Conversations kept of a source: `pool_limit`, and room to choose from whatever the budget."""
        return max(self.pool_limit, 4 * self.num_calibration_samples)
