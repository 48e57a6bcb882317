"""llm-compressor, in this process.

On a CPU without instructions for bf16 it computes in float32 (see `QuantizeSpec.precision`) and the checkpoint is cast
back to the model's own dtype when it is packed: codes are computed from float32 weights and the scales that are stored.
"""

from __future__ import annotations

import errno
import traceback
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize.backends.base import Job, Outcome
from quantize.backends.quiet import quiet
from quantize.methods.base import REDUCED_BITS
from quantize.precision import computed_in
from sqtool.errors import InfrastructureError, SqtoolError, UsageError
from sqtool.progress import Progress

if TYPE_CHECKING:
    import torch

PACKAGES = ("llmcompressor", "compressed-tensors", "torch", "transformers", "safetensors")
FAILURES = (
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    AssertionError,
    NotImplementedError,
    OSError,
    MemoryError,
)
# Warnings of llm-compressor that change what the user got; the others are in the log.
TELLING = ("Hessian inversion failed", "Skipping smooth_layer", "NaN")


MASKED = ("awq",)
"""Methods whose loss llm-compressor can restrict to some tokens."""


class LlmCompressor:
    """`backend: llmcompressor`."""

    def run(self, job: Job, progress: Progress) -> Outcome:
        """See `quantize.backends.base.Backend`."""
        import torch

        from quantize.backends.heap import kept_heap
        from quantize.backends.tracing import released

        notes: list[str] = []

        def keep(message: str) -> None:
            if any(word in message for word in TELLING) and message not in notes:
                notes.append(message)

        on_host = not torch.accelerator.is_available()
        with quiet(job.log, keep), released(), kept_heap() if on_host else nullcontext():
            try:
                return _run(job, progress, notes)
            except SqtoolError:
                raise
            except FAILURES as error:
                if isinstance(error.__cause__, SqtoolError):
                    # llm-compressor wraps what is raised inside of a traced forward pass.
                    raise error.__cause__ from None
                with job.log.open("a", encoding="utf-8") as handle:
                    traceback.print_exc(file=handle)
                raise _explain(error, job.log) from error


def _run(job: Job, progress: Progress, notes: list[str]) -> Outcome:
    from compressed_tensors.offload import disable_onloading
    from transformers import set_seed

    set_seed(job.seed)
    stored, computed = _dtypes(job)
    with progress.task("quantize: load the model"):
        model = _load(job, computed)
    details, packed = _compress(model, job, stored, progress, notes, pack=stored == computed)
    quantized = {name: module for name, module in model.named_modules() if _quantized(module)}
    with disable_onloading():  # counting brings no weight to the accelerator
        weights = sum(packed[x] if x in packed else x.weight.numel() for x in quantized.values())
    with progress.task("quantize: write the checkpoint"):
        _save(model, job, stored, cast=stored != computed)
    details["computed_in"], details["stored_in"] = (str(x).removeprefix("torch.") for x in (computed, stored))
    return Outcome({name: version(name) for name in PACKAGES}, sorted(quantized), weights, notes, details)


def _load(job: Job, dtype: torch.dtype) -> Any:
    """The model in host memory: llm-compressor brings one part of it after another to an accelerator."""
    from transformers import AutoModelForCausalLM

    from quantize.backends.experts import linearize

    model = AutoModelForCausalLM.from_pretrained(
        job.model,
        dtype=dtype,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=job.trust_remote_code,
    )
    linearize(model)
    return model


def _compress(
    model: Any, job: Job, stored: torch.dtype, progress: Progress, notes: list[str], *, pack: bool
) -> tuple[dict[str, Any], dict[Any, int]]:
    """Run the methods. The weights stay as they are until they are written; with `pack`, which needs weights in the
    dtype that the checkpoint keeps, methods without data leave layers in their stored form. Returns details for the
    summary, and how many weights each of those layers has."""
    from llmcompressor import oneshot

    from quantize.backends.attention import fused_attention
    from quantize.backends.cache_watch import summarize
    from quantize.backends.layer_watch import LayerWatch
    from quantize.backends.modifiers import Watches, build
    from quantize.backends.rows import has_loss_mask, isolates, loader, states_device
    from quantize.backends.same_function import FunctionWatch
    from quantize.backends.tracing import true_to_the_model

    decoder = decoder_layers(model)
    apart = job.tokens is not None and not isolates(model, decoder[0], job.tokens)
    if apart:
        notes.append(
            f"{type(model).__name__} lets the conversations of one calibration row see each other, so each went "
            "through it alone, which is slower"
        )
    watches = Watches(
        LayerWatch(job.layers, report=job.layer_report, zero_groups=job.zero_groups, stored=stored),
        FunctionWatch(decoder),
    )
    planned = [(method.name, modifier) for method in job.methods for modifier in method.modifiers()]
    recipe = [build(modifier, name, watches) for name, modifier in planned]
    names = " + ".join(dict.fromkeys(name for name, _ in planned))
    if job.layer_report == "outputs":
        for made in recipe:
            # What rounds to nearest would otherwise never see a token.
            made.requires_calibration_data = True
    if job.tokens and not any(made.requires_calibration_data for made in recipe):
        raise RuntimeError(f"{names} should look at data and llm-compressor would not show it any")
    # Without data llm-compressor treats the model as one part.
    steps = sum(len(decoder) + 1 if made.requires_calibration_data else 1 for made in recipe)
    data = loader(model, job.tokens, job.batch_size, apart=apart) if job.tokens else None
    kept_on = "cpu"
    if job.tokens and job.sequential_offload_device == "auto":
        kept_on = states_device(model, job.tokens, job.batch_size)
    first = next(iter(data)) if data else None
    if first is not None:
        first = {name: values for name, values in first.items() if name != "loss_mask"}
    masked = job.tokens is not None and has_loss_mask(job.tokens)
    if masked and (blind := [method.name for method in job.methods if method.name not in MASKED]):
        notes.append(f"{', '.join(blind)} looks at every token: only {MASKED[0]} has a loss that can be masked")
    with (
        progress.task(f"quantize: {names}", total=steps) as task,
        true_to_the_model(model, decoder[0], first),
        fused_attention(model),
    ):
        watches.advance = task.advance
        watches.pack = pack and not any(made.requires_calibration_data for made in recipe)
        oneshot(
            model=model,
            recipe=recipe,
            dataset=data,
            use_loss_mask=masked,
            sequential_offload_device=kept_on,
            moe_calibrate_all_experts=job.calibrate_all_experts,
            trust_remote_code_model=job.trust_remote_code,
        )
    if not watches.cache_lines:
        return {}, watches.packed
    watches.layers.write(watches.cache_lines)
    cache, found = summarize(watches.cache_lines)
    notes += found
    return {"kv_cache": cache}, watches.packed


def _save(model: Any, job: Job, stored: torch.dtype, *, cast: bool) -> None:
    from transformers import GenerationConfig

    _declare_reduced(model)
    if cast:
        _cast_back(model, stored)
    # The caller copies the model's own generation_config.json; transformers refuses to write some that it reads.
    model.generation_config = GenerationConfig()
    model.save_pretrained(str(job.out), save_compressed=True, max_shard_size=job.max_shard_size)


def _dtypes(job: Job) -> tuple[torch.dtype, torch.dtype]:
    """(the dtype that the checkpoint keeps, the dtype to compute in)."""
    import torch
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(job.model, trust_remote_code=job.trust_remote_code, local_files_only=True)
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise UsageError(
                f"{job.model} can only be loaded by running Python code that came with it",
                remedy="Read that code; if you trust it, set model.trust_remote_code: true in the recipe and "
                "add --trust-remote-code to the command.",
            ) from None
        raise
    stored = config.get_text_config().dtype or torch.bfloat16
    name = str(stored).removeprefix("torch.")
    return stored, getattr(torch, computed_in(job.precision, name, accelerator=torch.accelerator.is_available()))


def decoder_layers(model: Any) -> list[Any]:
    """The layers that the model's author wants kept in one piece, in order: what llm-compressor takes one at a time."""
    from llmcompressor.utils.pytorch.module import infer_sequential_targets

    names = infer_sequential_targets(model)
    return [module for module in model.modules() if type(module).__name__ in names]


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
    gives back the exact code that the method chose, rounding them to 16 bits first may not. NVFP4's one scale for a
    whole layer is float32 by definition."""
    for module in model.modules():
        kept = ("weight", "weight_global_scale", "input_global_scale") if _quantized(module) else ()
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_floating_point() and name not in kept:
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
