"""Our tables of mappings are those of the installed llm-compressor."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from quantize.preflight.mappings import AWQ, DEFAULT, DYNAMIC, MENDED_SMOOTHQUANT, SMOOTHQUANT, Mapping, known


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


@pytest.mark.parametrize("architecture", ["MixtralForCausalLM", "GptOssForCausalLM", "DeepseekV3ForCausalLM"])
def test_awq_as_sqtool_mends_it(architecture: str) -> None:
    from quantize.backends import mappings

    config = SimpleNamespace(num_hidden_layers=5, first_k_dense_replace=2)
    theirs = mappings.awq(type(architecture, (), {"config": config})())
    ours, source = known("awq", architecture, vars(config))
    assert theirs is not None
    assert ours == tuple(Mapping(m.smooth_layer, tuple(m.balance_layers)) for m in theirs)
    assert source.startswith("sqtool's")


def test_smoothquant_as_sqtool_mends_it() -> None:
    from quantize.backends import mappings

    theirs = {
        name: tuple(Mapping(smooth, tuple(balance)) for balance, smooth in pairs)
        for name, pairs in mappings.SMOOTHQUANT.items()
    }
    assert theirs == MENDED_SMOOTHQUANT
