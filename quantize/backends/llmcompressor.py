"""llm-compressor, in this process.

On a CPU it computes in float32 (see `QuantizeSpec.precision`) and the checkpoint is cast back to the model's own dtype
when it is packed: codes are computed from float32 weights and the scales that are stored.
"""

from __future__ import annotations

import errno
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize.backends.base import Job, Outcome
from quantize.backends.quiet import quiet
from quantize.methods.base import REDUCED_BITS
from sqtool.errors import InfrastructureError, SqtoolError
from sqtool.progress import Progress

if TYPE_CHECKING:
    import torch

PACKAGES = ("llmcompressor", "compressed-tensors", "torch", "transformers", "safetensors")
# Warnings of llm-compressor that change what the user got; the others are in the log.
TELLING = ("Hessian inversion failed", "Skipping smooth_layer", "NaN")


MASKED = ("awq",)
"""Methods whose loss llm-compressor can restrict to some tokens."""


class LlmCompressor:
    """`backend: llmcompressor`."""

    def run(self, job: Job, progress: Progress) -> Outcome:
        """See `quantize.backends.base.Backend`."""
        notes: list[str] = []

        def keep(message: str) -> None:
            if any(word in message for word in TELLING) and message not in notes:
                notes.append(message)

        with quiet(job.log, keep):
            try:
                layers, details = _run(job, progress, notes)
            except SqtoolError:
                raise
            except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, OSError, MemoryError) as error:
                with job.log.open("a", encoding="utf-8") as handle:
                    traceback.print_exc(file=handle)
                raise _explain(error, job.log) from error
        return Outcome({name: version(name) for name in PACKAGES}, layers, notes, details)


def _run(job: Job, progress: Progress, notes: list[str]) -> tuple[list[str], dict[str, Any]]:
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM, GenerationConfig, set_seed

    from quantize.backends.modifiers import build
    from quantize.backends.rows import has_loss_mask, isolates, loader

    set_seed(job.seed)
    stored, computed = _dtypes(job)
    with progress.task("quantize: load the model"):
        model = AutoModelForCausalLM.from_pretrained(
            job.model,
            dtype=computed,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=job.trust_remote_code,
        )
    decoder = _decoder_layers(model)
    parts = len(decoder) + 1
    if job.tokens and not isolates(model, decoder[0], job.tokens):
        notes.append(f"{type(model).__name__} lets the conversations of one calibration row see each other")
    planned = [(method.name, m) for method in job.methods for m in method.modifiers()]
    names = " + ".join(dict.fromkeys(name for name, _ in planned))
    with progress.task(f"quantize: {names}", total=sum(_steps(m.target, parts) for _, m in planned)) as task:
        recipe = [build(modifier, task.advance) for _, modifier in planned]
        if job.tokens and not any(made.requires_calibration_data for made in recipe):
            raise RuntimeError(f"{names} should look at data and llm-compressor would not show it any")
        data = loader(model, job.tokens, job.batch_size) if job.tokens else None
        masked = job.tokens is not None and has_loss_mask(job.tokens)
        if masked and (blind := [method.name for method in job.methods if method.name not in MASKED]):
            notes.append(f"{', '.join(blind)} looks at every token: only {MASKED[0]} has a loss that can be masked")
        oneshot(
            model=model,
            recipe=recipe,
            dataset=data,
            use_loss_mask=masked,
            trust_remote_code_model=job.trust_remote_code,
        )
    layers = sorted(name for name, module in model.named_modules() if _quantized(module))
    with progress.task("quantize: write the checkpoint"):
        _declare_reduced(model)
        if stored != computed:
            _cast_back(model, stored)
        # The caller copies the model's own generation_config.json; transformers refuses to write some that it reads.
        model.generation_config = GenerationConfig()
        model.save_pretrained(str(job.out), save_compressed=True)
    details = {"computed_in": str(computed).removeprefix("torch."), "stored_in": str(stored).removeprefix("torch.")}
    return layers, details


def _dtypes(job: Job) -> tuple[torch.dtype, torch.dtype]:
    """(the dtype that the checkpoint keeps, the dtype to compute in)."""
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(job.model, trust_remote_code=job.trust_remote_code, local_files_only=True)
    stored = config.get_text_config().dtype or torch.bfloat16
    if job.precision != "auto":
        return stored, getattr(torch, job.precision)
    return stored, stored if torch.accelerator.is_available() else torch.float32


def _decoder_layers(model: Any) -> Any:
    """The longest list of modules in the model: its decoder layers."""
    from torch.nn import ModuleList

    lists = [module for module in model.modules() if isinstance(module, ModuleList)]
    return max(lists, key=len, default=[])


def _steps(target: str, parts: int) -> int:
    # A plain QuantizationModifier needs no data here, so llm-compressor treats the model as one part.
    return 1 if target.endswith(":QuantizationModifier") else parts


def _quantized(module: Any) -> bool:
    scheme = getattr(module, "quantization_scheme", None)
    return scheme is not None and getattr(scheme, "weights", None) is not None


def _declare_reduced(model: Any) -> None:
    """Codes of the reduced range are INT8 to every reader: same storage, same arithmetic, a scale that fits them."""
    for module in model.modules():
        if _quantized(module):
            weights, inputs = module.quantization_scheme.weights, module.quantization_scheme.input_activations
            if inputs is not None and weights.type == "int" and weights.num_bits == REDUCED_BITS:
                weights.num_bits = inputs.num_bits


def _cast_back(model: Any, dtype: torch.dtype) -> None:
    """Everything to `dtype`, except weights that are about to be packed: dividing float32 weights by the stored scale
    gives back the exact code that the method chose, rounding them to 16 bits first may not."""
    for module in model.modules():
        packed = _quantized(module)
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_floating_point() and not (packed and name == "weight"):
                parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    model.config.get_text_config().dtype = dtype


def _explain(error: Exception, log: Path) -> InfrastructureError:
    text = str(error).strip() or type(error).__name__
    lines = text.splitlines()
    if isinstance(error, MemoryError) or "out of memory" in text.lower() or "can't allocate memory" in text.lower():
        return InfrastructureError(
            f"memory ran out while quantizing: {lines[0]}",
            remedy="Lower quantize.batch_size or calibrate.max_seq_length, or use a larger machine.",
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return InfrastructureError("the disk is full", remedy="Free some space; `sqtool plan` tells the size.")
    return InfrastructureError(
        f"llm-compressor failed: {type(error).__name__}: {lines[0]}", remedy=f"The whole story is in {log}."
    )
