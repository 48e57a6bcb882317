"""llm-compressor's modifiers with what sqtool needs added, by subclassing. Import it only inside functions.

Each one reports when a part of the model (a decoder layer) is done, and shows its layers before and after.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from compressed_tensors.compressors.base import compress_module
from compressed_tensors.offload import disable_offloading
from compressed_tensors.quantization import QuantizationStatus
from llmcompressor.modifiers import Modifier as LlmModifier
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

from quantize.backends import mappings as known_mappings
from quantize.backends.awq import Awq
from quantize.backends.cache_watch import CacheWatch
from quantize.backends.gptq import Gptq
from quantize.backends.layer_watch import LayerWatch
from quantize.backends.same_function import FunctionWatch
from quantize.methods.base import REDUCED_BITS, Modifier


class SmoothQuant(SmoothQuantModifier):
    """SmoothQuantModifier that insists on mappings, and on right ones."""

    def _infer_mappings_from_model(self, model: Any) -> Any:
        known = known_mappings.smoothquant(model)
        return known if known and self.mappings is None else super()._infer_mappings_from_model(model)

    def _resolve_mappings(self, model: Any) -> Any:
        resolved = super()._resolve_mappings(model)
        if not resolved:
            raise known_mappings.none_fits("smoothquant", model)
        return resolved


class CacheQuantization(QuantizationModifier):
    """QuantizationModifier for the KV cache that leaves the linear layers of the attention as other methods set them
    up. llm-compressor 0.14 takes their status away with the attention's own, and AWQ then fails on them."""

    def on_initialize(self, state: Any, **kwargs: Any) -> bool:
        modules = [module for module in state.model.modules() if hasattr(module, "quantization_status")]
        statuses = [module.quantization_status for module in modules]
        done = super().on_initialize(state, **kwargs)
        for module, status in zip(modules, statuses, strict=True):
            module.quantization_status = status
        return bool(done)


def _shares_scale(module: Any) -> bool:
    """Whether the layer's scale also depends on other layers' weights (NVFP4's one scale for q, k and v)."""
    return hasattr(module, "weight_global_scale")


OURS: dict[type, Any] = {AWQModifier: Awq, SmoothQuantModifier: SmoothQuant, GPTQModifier: Gptq}
RESCALING = (AWQModifier, SmoothQuantModifier)


@dataclass
class Watches:
    """Who is told how the work goes on."""

    layers: LayerWatch
    function: FunctionWatch
    cache: CacheWatch = field(default_factory=CacheWatch)
    cache_lines: list[dict[str, Any]] = field(default_factory=list)
    advance: Callable[[], None] = lambda: None
    pack: bool = False
    """Bring a layer into its stored form as soon as it is rounded: right where nothing runs the model afterwards. Its
    weight then comes to the accelerator once, and not again when the checkpoint is written."""
    packed: dict[Any, int] = field(default_factory=dict)
    """Weights of each layer that has its stored form."""


def build(modifier: Modifier, method: str, watches: Watches) -> LlmModifier:
    """The modifier that `modifier` names, for the recipe's `method`.

    It tells `watches` of each layer that it rounds, and calls `watches.advance` once for each part of the model.
    """
    module, _, attribute = modifier.target.partition(":")
    named = getattr(import_module(module), attribute)
    cache = "kv_cache_scheme" in modifier.arguments
    rescales = named in RESCALING
    base: Any = CacheQuantization if cache else OURS.get(named, named)

    def on_calibration_start(self: Any, state: Any, event: Any, **kwargs: Any) -> None:
        base.on_calibration_start(self, state, event, **kwargs)
        watches.layers.start(state.model)
        if rescales:
            watches.function.start(state.model, method)
        if cache:
            watches.cache.start(state.model)

    def on_sequential_epoch_end(self: Any, state: Any, event: Any, *, modules: list[Any], **kwargs: Any) -> None:
        gptq = issubclass(base, GPTQModifier)
        # GPTQ counts an expert's empty batches too; its Hessian has stayed zero then.
        counted = {module for module, hessian in self._hessians.items() if hessian.diagonal().any()} if gptq else None
        watches.layers.reached(modules, counted)
        rounding = watches.layers.before(modules, changes_weights=gptq)
        alone = [] if gptq or rescales else [module for module in rounding if not _shares_scale(module)]
        for module in alone:
            # The weight comes to the accelerator once, for llm-compressor's observer and for the report.
            with disable_offloading():
                base.on_sequential_epoch_end(self, state, event, modules=[module], **kwargs)
                watches.layers.after([module], method)
                if watches.pack and module.quantization_scheme.weights.num_bits != REDUCED_BITS:
                    watches.packed[module] = module.weight.numel()
                    compress_module(module)
        seen = set(alone)
        rest = [module for module in modules if module not in seen]
        base.on_sequential_epoch_end(self, state, event, modules=rest, **kwargs)
        watches.layers.after([module for module in rounding if module not in seen], method)
        watches.layers.forget()
        if rescales:
            watches.function.rescaled(modules)
        if cache:
            watches.cache.scaled(modules)
        watches.advance()

    def on_calibration_end(self: Any, state: Any, event: Any, **kwargs: Any) -> None:
        base.on_calibration_end(self, state, event, **kwargs)
        for module in watches.packed:
            # llm-compressor has just declared all layers unpacked, and would pack these once more.
            module.quantization_status = QuantizationStatus.COMPRESSED
        watches.layers.end()
        if rescales:
            watches.function.end()
        if cache:
            watches.cache_lines = watches.cache.end()

    # A plain subclass with a few methods: a mixin that is a Modifier itself would bring its field defaults along, and
    # `requires_calibration_data: False` would win. The class keeps llm-compressor's name, which recipe.yaml records.
    namespace = {
        "__module__": __name__,
        "on_calibration_start": on_calibration_start,
        "on_sequential_epoch_end": on_sequential_epoch_end,
        "on_calibration_end": on_calibration_end,
    }
    reporting = type(named.__name__, (base,), namespace)
    made: LlmModifier = reporting(**modifier.arguments)
    return made
