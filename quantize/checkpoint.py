"""The files of a checkpoint that are not weights: carried over byte for byte, so that the quantized model speaks as its
baseline does (tokenizer, chat template, generation defaults)."""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

from quantize.headers import Tensor
from sqtool.files import read_json, write_json

# What belongs to the text side of a checkpoint. Anything else (training state, READMEs, other weights) stays behind.
COMPANIONS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "*.tiktoken",
    "*.jinja",
    "chat_template*",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "LICENSE*",
)
# transformers writes it on save even when the model has none: its defaults would then differ from the baseline's.
WRITTEN_ON_SAVE = "generation_config.json"
SIMULATED = "simulated.json"

QUANTIZED_PART = re.compile(
    r"\.(weight_packed|weight_scale|weight_zero_point|weight_shape|weight_g_idx|weight_global_scale|input_scale"
    r"|input_global_scale)$"
)

# The AWQ and GPTQ formats.
PACKED_PART = re.compile(r"\.(qweight|qzeros|scales|g_idx)$")


def copy_companions(model: Path, out: Path) -> list[str]:
    """Copy tokenizer, templates and generation defaults from `model` to `out`; the names copied, sorted."""
    copied = []
    for pattern in COMPANIONS:
        for path in sorted(model.glob(pattern)):
            if path.is_file() and path.name not in copied:
                shutil.copyfile(path, out / path.name)
                copied.append(path.name)
    if WRITTEN_ON_SAVE not in copied:
        (out / WRITTEN_ON_SAVE).unlink(missing_ok=True)
    for folder in ("additional_chat_templates",):
        if (model / folder).is_dir():
            shutil.copytree(model / folder, out / folder, dirs_exist_ok=True)
            copied.append(folder)
    return sorted(copied)


def copy_config(model: Path, out: Path) -> None:
    """The model's own config.json, as it is (for checkpoints whose weights stay 16-bit)."""
    shutil.copyfile(model / "config.json", out / "config.json")


def mark_simulated(out: Path, note: dict[str, Any]) -> None:
    """Say in the checkpoint itself that its weights are 16-bit and only hold low-bit values."""
    write_json(
        out / SIMULATED,
        {"simulated": True, "meaning": "16-bit weights that hold the values of a low-bit scheme", **note},
    )


def is_simulated(folder: Path) -> bool:
    """Does this checkpoint say that it is simulated?"""
    path = folder / SIMULATED
    return path.is_file() and bool(read_json(path).get("simulated"))


def quantized_modules(tensors: dict[str, Tensor]) -> dict[str, list[Tensor]]:
    """For each quantized layer of a checkpoint its tensors (weight, scales, zero points)."""
    scaled = {name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")}
    scaled |= {name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")}
    modules: dict[str, list[Tensor]] = defaultdict(list)
    for name, tensor in tensors.items():
        module = PACKED_PART.sub("", QUANTIZED_PART.sub("", name)).removesuffix(".weight")
        if module in scaled:
            modules[module].append(tensor)
    return dict(modules)
