"""The unmodified model, ready for forward passes. Import it only inside functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from calibrate.activations.spec import ActivationsSpec
from sqtool.errors import InfrastructureError, UsageError


def load_model(folder: Path, spec: ActivationsSpec, *, trust_remote_code: bool = False) -> Any:
    """The model in folder `folder`, on the device and in the type that `spec` says (several GPUs are filled in turn).

    Raises InfrastructureError when transformers cannot load it, UsageError for a device that is not there."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    accelerated = torch.cuda.is_available()
    if spec.device == "cuda" and not accelerated:
        raise UsageError("calibrate.activations.device is cuda, and torch sees no GPU")
    on_cpu = spec.device == "cpu" or not accelerated
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=_dtype(spec.dtype, on_cpu),
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            **({} if on_cpu else {"device_map": "auto"}),
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InfrastructureError(
            f"transformers cannot load {folder}: {str(error).splitlines()[0]}",
            remedy="`calibrate: {activations: null}` leaves coverage at the model level out.",
        ) from error
    finally:
        if bars:
            logging.enable_progress_bar()
    return model.eval()


def _dtype(wanted: str, on_cpu: bool) -> str:
    # Without AVX-512, bf16 matrix products on an x86 processor are emulated.
    emulated = on_cpu and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")
    return "float32" if wanted == "auto" and emulated else wanted
