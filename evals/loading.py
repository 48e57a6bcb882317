"""A model of transformers, ready to run, with its output layer."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evals.heads import Head, check_head, head_of
from evals.quiet import quiet
from sqtool.errors import InfrastructureError, UsageError
from sqtool.templates import check_template

CHECK_TOKENS = 32


def device(wanted: str) -> str:
    """Where to run: what `evaluate.drift.device` means here."""
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("evaluate.drift.device is cuda, and torch sees no GPU")
    return wanted


def dtype(wanted: str, device: str) -> str:
    """What transformers is told. bf16 matrix products on an x86 CPU without AVX-512 are emulated, slowly."""
    import torch

    emulated = device == "cpu" and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")
    return "float32" if wanted == "auto" and emulated else wanted


def load(folder: Path, device: str, dtype: str, tokens: Sequence[int]) -> tuple[Any, Head]:
    """A model ready to run and its output layer, checked on `tokens` (see `check_head`). Formats that transformers does
    not read by itself are unpacked first."""
    from evals.packed_words import packed_format
    from evals.unpacked import unpack

    if packed_format(folder) is None:
        return _load(folder, device, dtype, tokens)
    with tempfile.TemporaryDirectory(prefix="sqtool-drift-") as place:
        unpack(folder, Path(place) / "model")
        return _load(Path(place) / "model", device, dtype, tokens)


def _load(folder: Path, device: str, dtype: str, tokens: Sequence[int]) -> tuple[Any, Head]:
    import torch
    from transformers import AutoModelForCausalLM

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with quiet():
        try:
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, local_files_only=True, use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise InfrastructureError(
                f"transformers cannot load {folder}: {error}",
                remedy="Drift runs in sqtool's own environment; `evaluate.drift: null` leaves it out.",
            ) from error
        model = model.eval().to(device)
        head = head_of(model)
        # A packed checkpoint is unpacked by its first forward pass, which this is.
        check_head(model, head, torch.tensor([list(tokens[:CHECK_TOKENS])], device=device))
    return model, head


def tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder."""
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if found.chat_template:
        check_template(folder, found.chat_template)
    return found
