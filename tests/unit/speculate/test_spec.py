"""What a recipe's speculate section accepts."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from sqtool.speculate.spec import SpeculateSpec


def test_speculative_config() -> None:
    assert SpeculateSpec().speculative_config("/d") == {
        "method": "draft_model",
        "num_speculative_tokens": 4,
        "model": "/d",
    }
    spec = SpeculateSpec(method="ngram", num_speculative_tokens=3, prompt_lookup_max=4)
    assert spec.speculative_config(None) == {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"method": "eagle"}, "draft_model"),
        ({"num_speculative_tokens": 0}, "greater than or equal to 1"),
        ({"prompt_lookup_max": 4}, "need method: ngram"),
        ({"method": "ngram", "prompt_lookup_min": 5, "prompt_lookup_max": 2}, "greater than prompt_lookup_max"),
        ({"drafts": 3}, "Extra inputs"),
    ],
)
def test_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SpeculateSpec.model_validate(section)
