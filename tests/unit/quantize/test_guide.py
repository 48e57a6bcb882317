"""docs/methods.md: every snippet is a section that a recipe may have, and no method is left out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from quantize.methods import METHODS, load_method
from quantize.methods.base import QuantizingSpec
from quantize.spec import QuantizeSpec

GUIDE = (Path(__file__).parents[3] / "docs" / "methods.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```yaml\n(.*?)```", GUIDE, flags=re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_snippet_is_a_section_of_a_recipe(snippet: str) -> None:
    loaded = YAML(typ="safe").load(snippet)
    assert list(loaded) == ["quantize"]
    assert QuantizeSpec.model_validate(loaded["quantize"]).methods


def test_every_method_has_a_snippet() -> None:
    shown = {
        step.method.name
        for snippet in SNIPPETS
        for step in QuantizeSpec.model_validate(YAML(typ="safe").load(snippet)["quantize"]).methods
    }
    assert shown == set(METHODS)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("smoothquant", "kv_cache", "rtn")])
def test_every_scheme_is_named(name: str) -> None:
    method = load_method(name)
    assert issubclass(method, QuantizingSpec)
    assert all(re.search(rf"\b{scheme}\b", GUIDE) for scheme in method.schemes)


def test_settings_in_the_guide_are_the_defaults() -> None:
    (snippet,) = [snippet for snippet in SNIPPETS if "max_shard_size" in snippet]
    shown = YAML(typ="safe").load(snippet)["quantize"]
    default = QuantizeSpec.model_validate({"methods": ["gptq"]})
    for key, value in shown.items():
        if key != "methods":
            assert getattr(default, key) == value, key
