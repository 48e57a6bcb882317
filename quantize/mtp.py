"""A model's own MTP head: which tensors it is, and carrying it over to a quantized checkpoint as it was.

transformers leaves the head out when it loads a model for text generation, so what a quantizer writes has none, and a
server that should draft with it fails or drafts noise. The head stays in 16 bits: quantized ones are known to accept
nothing. Names: DeepSeek-V3 (arXiv:2412.19437) and GLM-4.5 keep the head as decoder layers beyond the last, MiMo under
`mtp_layers`, Qwen3-Next and Qwen3.5 under `mtp`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from quantize.headers import read_checkpoint
from sqtool.files import read_json, write_json

LAYERS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers")
"""Keys of config.json that say how many layers the head has."""
QUANTIZATION = "quantization_config"
_NAMED = re.compile(r"^(.*?\b(?:mtp|mtp_layers|nextn))(?:\.|_)")


def head_layers(config: Mapping[str, Any]) -> int:
    """Layers of the MTP head by `config` (that of the text model where there are several); 0 for none."""
    text = {**config, **(config.get("text_config") or {})}
    return next((int(text[key]) for key in LAYERS if text.get(key)), 0)


def head_tensors(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """The head's tensors among `names`, each with the prefix that it shares with the rest of its part of the head."""
    text = {**config, **(config.get("text_config") or {})}
    first = int(text.get("num_hidden_layers") or 0)
    beyond = "|".join(str(first + at) for at in range(head_layers(config)))
    layer = re.compile(rf"^((?:.*\.)?layers\.(?:{beyond})\.)") if beyond else None
    found = {}
    for name in names:
        match = _NAMED.search(name) or (layer.search(name) if layer is not None else None)
        if match is not None:
            found[name] = match.group(1)
    return found


def carry_head(model: Path, checkpoint: Path) -> list[str]:
    """Copy the MTP head of `model` that is missing in `checkpoint`; the names of the tensors copied, sorted.

    For checkpoints in the compressed-tensors format: their `ignore` list then names the head, as the checkpoint calls
    it and as decoder layers beyond the last, which is what vLLM calls it. Other formats are left as they are.
    """
    config, written = read_json(model / "config.json"), read_json(checkpoint / "config.json")
    quantization = written.get(QUANTIZATION) or {}
    if head_layers(config) == 0 or quantization.get("quant_method") != "compressed-tensors":
        return []
    head = head_tensors(config, read_checkpoint(model))
    there = read_checkpoint(checkpoint)
    missing = {name: prefix for name, prefix in head.items() if name not in there}
    if not missing:
        return []
    from compressed_tensors.utils import save_mtp_tensors_to_checkpoint

    prefixes = sorted(set(missing.values()))
    for number, prefix in enumerate(prefixes, 1):
        shard = f"model_mtp-{number:05d}-of-{len(prefixes):05d}.safetensors"
        save_mtp_tensors_to_checkpoint(str(model), str(checkpoint), mtp_prefix=prefix, shard_name=shard)
    written = read_json(checkpoint / "config.json")
    ignore: list[str] = written[QUANTIZATION]["ignore"]
    text = {**config, **(config.get("text_config") or {})}
    first = int(text["num_hidden_layers"])
    extra = [rf"re:^(language_model\.)?(model\.)?layers\.{first + at}\..*" for at in range(head_layers(config))]
    written[QUANTIZATION]["ignore"] = [*ignore, *(pattern for pattern in extra if pattern not in ignore)]
    write_json(checkpoint / "config.json", written)
    return sorted(missing)
