"""Mixtures of experts as plain linear layers, which is what quantizers can take. Import it only inside functions.

transformers keeps the experts of a layer in two three-dimensional tensors. llm-compressor can put one linear layer in
place of each projection of each expert while it loads a model; that way patches every module of transformers, which
fails where torchvision is not installed, and changes how later models are read in this process. So they are replaced
after loading.
"""

from __future__ import annotations

from typing import Any

from llmcompressor.modeling.moe.conversion_mappings import (
    get_linearize_load_mappings,
    has_linearize_load_mappings,
    set_save_conversion_mapping,
)
from llmcompressor.modeling.moe.linearize import get_linearized_moes, linearize_moe
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming

PARTS = {".experts.gate_up_proj": ("gate_proj", "up_proj"), ".experts.down_proj": ("down_proj",)}


def linearize(model: Any) -> int:
    """Replace the experts of `model` in place, so that it is saved under its checkpoint's own names.

    Returns the number of layers that have experts.
    """
    linearize_moe(model)
    found = len(get_linearized_moes(model))
    if found:
        set_save_conversion_mapping(model, _saving(model.config.model_type))
    return found


def _saving(model_type: str) -> list[Any]:
    """How names of a checkpoint become names in the model; saving turns it around.

    llm-compressor knows the model types whose checkpoints name projections as the model does. For the others, such as
    Mixtral with its w1, w2 and w3, it follows from how transformers joins them.
    """
    if has_linearize_load_mappings(model_type):
        _, _, saving = get_linearize_load_mappings(model_type)
        return list(saving)
    renamings: list[Any] = []
    for conversion in get_checkpoint_conversion_mapping(model_type) or []:
        if not isinstance(conversion, WeightConverter):
            renamings.append(conversion)
            continue
        for ours, theirs in zip(PARTS.get(conversion.target_patterns[0], ()), conversion.source_patterns, strict=False):
            name = theirs.removesuffix(".weight").rsplit(".", 1)[-1]
            source, target = rf"\.experts\.(\d+)\.{name}\.", rf".experts.\1.{ours}."
            renamings.append(WeightRenaming(source_patterns=source, target_patterns=target))
    return renamings
