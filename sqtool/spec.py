"""The base of every recipe section: strict, frozen pydantic models."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """A section of a recipe. Unknown keys are errors, values are not coerced from other types' strings,
    and a section never changes after it was read (its JSON is part of a stage's digest)."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=False,
        allow_inf_nan=False,
        protected_namespaces=(),
        # The text under a field is its description in `sqtool schema` too, where an editor shows it.
        use_attribute_docstrings=True,
    )
