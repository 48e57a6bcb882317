"""Our tables of mappings are those of the installed llm-compressor."""

from __future__ import annotations

from quantize.preflight.mappings import AWQ, DEFAULT, DYNAMIC, SMOOTHQUANT, Mapping


def test_awq() -> None:
    from llmcompressor.modifiers.transform.awq.dynamic_mappings import AWQ_DYNAMIC_MAPPING_REGISTRY
    from llmcompressor.modifiers.transform.awq.mappings import AWQ_MAPPING_REGISTRY, default_mappings

    theirs = {
        name: tuple(Mapping(m.smooth_layer, tuple(m.balance_layers)) for m in mappings)
        for name, mappings in AWQ_MAPPING_REGISTRY.items()
    }
    assert theirs == AWQ
    assert AWQ[DEFAULT] == tuple(Mapping(m.smooth_layer, tuple(m.balance_layers)) for m in default_mappings)
    assert set(AWQ_DYNAMIC_MAPPING_REGISTRY) <= DYNAMIC


def test_smoothquant() -> None:
    from llmcompressor.modifiers.transform.smoothquant.dynamic_mappings import SMOOTHQUANT_DYNAMIC_MAPPING_REGISTRY
    from llmcompressor.modifiers.transform.smoothquant.utils import DEFAULT_SMOOTHQUANT_MAPPINGS, MAPPINGS_REGISTRY

    theirs = {
        name: tuple(Mapping(m.smooth_layers, tuple(m.balance_layers)) for m in mappings)
        for name, mappings in MAPPINGS_REGISTRY.items()
    }
    assert theirs == SMOOTHQUANT
    default = tuple(Mapping(m.smooth_layers, tuple(m.balance_layers)) for m in DEFAULT_SMOOTHQUANT_MAPPINGS)
    assert SMOOTHQUANT[DEFAULT] == default
    assert set(SMOOTHQUANT_DYNAMIC_MAPPING_REGISTRY) <= DYNAMIC
