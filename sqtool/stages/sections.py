"""Typed access to the further sections that the stage table gives a stage."""

from __future__ import annotations

from evals.spec import EngineSpec, EvaluateSpec
from quantize.spec import QuantizeSpec
from sqtool.gate.spec import GateSpec
from sqtool.stages.contract import Inputs


def engine_section(inputs: Inputs) -> EngineSpec:
    """The `engine` section."""
    section = inputs.sections["engine"]
    assert isinstance(section, EngineSpec)
    return section


def evaluate_section(inputs: Inputs) -> EvaluateSpec:
    """The `evaluate` section."""
    section = inputs.sections["evaluate"]
    assert isinstance(section, EvaluateSpec)
    return section


def quantize_section(inputs: Inputs) -> QuantizeSpec:
    """The `quantize` section."""
    section = inputs.sections["quantize"]
    assert isinstance(section, QuantizeSpec)
    return section


def gate_section(inputs: Inputs) -> GateSpec:
    """The `gate` section."""
    section = inputs.sections["gate"]
    assert isinstance(section, GateSpec)
    return section
