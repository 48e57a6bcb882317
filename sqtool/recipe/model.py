"""The recipe: which model, what is done to it, how it is measured and what it must hold.

Each section is the model of the package that carries it out; this file only puts them together. Every section has
defaults, so a recipe needs little more than its methods.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from calibrate.spec import CalibrateSpec
from evals.spec import EngineSpec, EvaluateSpec
from quantize.spec import QuantizeSpec
from sqtool.gate.spec import GateSpec
from sqtool.release.spec import ReleaseSpec
from sqtool.spec import Spec
from sqtool.speculate.spec import SpeculateSpec

REFERENCE_TARGET = "artifacts/reference/target"
REFERENCE_DRAFT = "artifacts/reference/draft"
SECTIONS = ("calibrate", "quantize", "evaluate", "gate", "speculate", "release", "engine")


class ModelRef(Spec):
    """A Hugging Face model: a local folder, or an id on the hub. A plain text means `path`, or `id` when no such
    folder exists and the text looks like `owner/name`."""

    path: Path | None = Field(default=None, description="Folder with config.json, weights and tokenizer.")
    id: str | None = Field(default=None, description="Name on the Hugging Face hub, `owner/name`.")
    revision: str | None = Field(default=None, description="Branch, tag or commit on the hub; only with `id`.")
    trust_remote_code: bool = Field(default=False, description="Run Python code that comes with the model.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.id is None):
            raise ValueError("give either path (a folder) or id (a name on the hub)")
        if self.revision is not None and self.id is None:
            raise ValueError("revision has a meaning only with id")
        return self

    def __str__(self) -> str:
        if self.id is not None:
            return self.id + (f"@{self.revision}" if self.revision else "")
        return str(self.path)


def _from_text(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


ShortModelRef = Annotated[ModelRef, BeforeValidator(_from_text, json_schema_input_type=ModelRef | str)]


class Recipe(Spec):
    """One YAML file: a model, methods, and what the result must hold to be released."""

    name: str = Field(
        default="",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$",
        max_length=80,
        description="Name of the run folder; default: the file's name without its ending.",
    )
    description: str = Field(default="", description="One sentence for people.")
    model: ShortModelRef = Field(
        default_factory=lambda: ModelRef(path=Path(REFERENCE_TARGET)),
        description="The bf16 baseline; default: the reference target that ships with the project.",
    )
    draft: ShortModelRef | None = Field(
        default=None,
        description="The draft model for speculation; default: the reference draft when the model is the reference "
        "target, none otherwise.",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Everything random derives from it.")
    calibrate: CalibrateSpec = Field(
        default_factory=lambda: CalibrateSpec(), description="The calibration set and the coverage that it must have."
    )
    quantize: QuantizeSpec = Field(description="Methods in the order in which they are applied, or a checkpoint.")
    evaluate: EvaluateSpec = Field(
        default_factory=lambda: EvaluateSpec(), description="Tasks that both sides answer, and how they are asked."
    )
    gate: GateSpec = Field(
        default_factory=lambda: GateSpec(), description="Metrics that decide, their margins and the error rate."
    )
    speculate: SpeculateSpec = Field(
        default_factory=lambda: SpeculateSpec(), description="Speculative decoding with the candidate, four arms."
    )
    release: ReleaseSpec = Field(
        default_factory=lambda: ReleaseSpec(), description="Where a passing checkpoint is published."
    )
    engine: EngineSpec = Field(default_factory=lambda: EngineSpec(), description="What answers, and how it is started.")

    @field_validator("name")
    @classmethod
    def _no_ending_of_ours(cls, value: str) -> str:
        if value.endswith((".tmp", ".old", ".lock")):
            raise ValueError("ends like a file that sqtool makes and removes; choose another name")
        return value

    @model_validator(mode="before")
    @classmethod
    def _reference_draft(cls, data: Any) -> Any:
        """The reference target comes with its draft, unless the recipe names one or says `draft: null`."""
        if isinstance(data, dict) and "draft" not in data:
            model = data.get("model", REFERENCE_TARGET)
            path = model.get("path") if isinstance(model, dict) else model
            if isinstance(path, str | Path) and Path(path) == Path(REFERENCE_TARGET):
                return {**data, "draft": REFERENCE_DRAFT}
        return data

    def section(self, name: str) -> Spec:
        """The section called `name`, one of SECTIONS."""
        if name not in SECTIONS:
            raise KeyError(name)
        section = getattr(self, name)
        assert isinstance(section, Spec)
        return section


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a recipe, for editors."""
    schema = Recipe.model_json_schema(mode="validation")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "sqtool recipe",
        **{key: value for key, value in schema.items() if key != "title"},
    }
