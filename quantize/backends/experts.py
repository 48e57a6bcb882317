"""Mixtures of experts as plain linear layers while they are quantized. Import it only inside functions.

transformers keeps the experts of a layer in two three-dimensional tensors, which no quantizer takes apart.
llm-compressor replaces them by linear layers while it loads a model, and by that changes how transformers reads every
later model of the same type in this process. Here that ends with the block.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from llmcompressor.modeling.moe.linearize import load_quantizable_moe
from transformers import conversion_mapping


@contextmanager
def linear_experts() -> Iterator[None]:
    """Models that are loaded and saved inside have one linear layer for each projection of each expert."""
    conversion_mapping.get_checkpoint_conversion_mapping("")  # builds the table, whatever it is asked for
    table = conversion_mapping._checkpoint_conversion_mapping_cache
    registered = conversion_mapping.USER_REGISTERED_MAPPINGS
    kept, kept_names = dict(table), set(registered)
    try:
        with load_quantizable_moe():
            yield
    finally:
        table.clear()
        table.update(kept)
        registered.intersection_update(kept_names)
