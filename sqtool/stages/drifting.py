"""Whether drift can be measured at all, known before anything is asked."""

from __future__ import annotations

from evals.spec import EvaluateSpec
from sqtool.errors import UsageError
from sqtool.stages.contract import Inputs


def problem(spec: EvaluateSpec, inputs: Inputs) -> UsageError | None:
    """Why drift has nothing to compare, such as a recipe of lm-eval's tasks alone or a model without chat template."""
    if spec.drift is None:
        return None
    from evals.texts import why_none

    return why_none(spec, spec.drift, inputs.model, inputs.root)


def possible(spec: EvaluateSpec, inputs: Inputs) -> EvaluateSpec:
    """The section; without drift where it has nothing to compare and the recipe does not ask for it by name. Where it
    does, `UsageError`."""
    found = problem(spec, inputs)
    if found is None:
        return spec
    if "drift" in spec.model_fields_set:
        raise found
    return spec.model_copy(update={"drift": None})


def left_out(spec: EvaluateSpec, inputs: Inputs) -> tuple[str, ...]:
    """The note for people where `possible` leaves drift out."""
    found = problem(spec, inputs)
    return () if found is None else (f"drift is left out: {found.message}",)
