"""Weight-only checkpoints on a processor without a kernel for them: the same weights, unpacked to 16 bits.

A weight-only format stores codes and scales and computes with their product, rounded to the model's 16-bit type, so the
unpacked checkpoint answers as the packed one does, up to the order in which a kernel adds. It says nothing about
speed or memory of the packed one. A result that was measured so carries it in the engine's facts (`weights`).
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from evals.engine_env import model_config
from evals.packed_words import packed_format, unpack_words
from evals.quiet import quiet
from sqtool.errors import EngineError
from sqtool.files import write_json

if TYPE_CHECKING:
    import torch

_QUANTIZATION_STATE = re.compile(r"\.(weight|input|output)_(scale|zero_point|g_idx|global_scale|packed|shape)$")
_OWN = {"config.json", "model.safetensors", "model.safetensors.index.json"}


def unpack(model: Path, out: Path) -> None:
    """Write the packed checkpoint in folder `model` to `out` as ordinary weights of the model's own type.

    The model has to fit into memory. Raises EngineError when the checkpoint cannot be loaded; `out` is then removed.
    """
    import torch
    from safetensors.torch import save_file

    config = model_config(model)
    dtype = getattr(torch, str(config.get("dtype") or config.get("torch_dtype") or "bfloat16"))
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    try:
        tensors = _compressed_tensors(model, dtype) if packed_format(model) is None else unpack_words(model, dtype)
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
        write_json(out / "config.json", {k: v for k, v in config.items() if k != "quantization_config"})
        for path in model.iterdir():
            if path.is_file() and path.name not in _OWN and path.suffix != ".safetensors":
                shutil.copyfile(path, out / path.name)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        shutil.rmtree(out, ignore_errors=True)
        raise EngineError(
            f"{model} cannot be unpacked to 16 bits: {error}", remedy="Evaluate on a machine that has the kernel."
        ) from error


def _compressed_tensors(model: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    from compressed_tensors.compressors.base import decompress_module
    from transformers import AutoModelForCausalLM

    with quiet():
        loaded = AutoModelForCausalLM.from_pretrained(
            model, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
        # transformers would unpack on the first forward pass; here nothing is computed.
        for module in loaded.modules():
            decompress_module(module)
        state = loaded.state_dict()
    tied = set(getattr(loaded, "all_tied_weights_keys", None) or getattr(loaded, "_tied_weights_keys", None) or ())
    if not model_config(model).get("tie_word_embeddings"):
        tied = set()
    return {
        name: (value.to(dtype) if value.is_floating_point() else value).contiguous()
        for name, value in state.items()
        if not _QUANTIZATION_STATE.search(name) and name not in tied
    }
