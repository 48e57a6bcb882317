"""llm-compressor's modifiers with what sqtool needs added, by subclassing. Import it only inside functions.

Each one reports when a part of the model (a decoder layer) is done. AWQ also gets an activation cache that does not pin
memory, and fails when the architecture's mappings are unknown instead of quantizing as if nothing had been asked.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from llmcompressor.modifiers import Modifier as LlmModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from llmcompressor.pipelines.cache import IntermediatesCache

from quantize.methods.base import Modifier
from sqtool.errors import UsageError


class UnpinnedCache(IntermediatesCache):
    """A cache whose tensors stay in ordinary memory. Pinning speeds up copies to an accelerator; without one it is
    an error in torch ("Cannot access accelerator device"), and AWQModifier 0.14 pins without asking."""

    def pin_memory(self, batch_index: int, input_names: list[str] | None = None) -> None:
        return None


class Awq(AWQModifier):
    """AWQModifier that runs without an accelerator and insists on mappings."""

    def _set_resolved_mappings(self, model: Any) -> None:
        super()._set_resolved_mappings(model)
        if not self._resolved_mappings:
            raise _no_mappings("awq", model)

    def _setup_activation_cache_hooks(self) -> None:
        import torch

        super()._setup_activation_cache_hooks()
        if torch.accelerator.is_available():
            return
        for parent in self._parent_args_cache:
            self._parent_args_cache[parent] = UnpinnedCache(None, self.offload_device)


class SmoothQuant(SmoothQuantModifier):
    """SmoothQuantModifier that insists on mappings."""

    def _resolve_mappings(self, model: Any) -> Any:
        resolved = super()._resolve_mappings(model)
        if not resolved:
            raise _no_mappings("smoothquant", model)
        return resolved


def _no_mappings(method: str, model: Any) -> UsageError:
    return UsageError(
        f"llm-compressor knows no {method} mappings that fit {type(model).__name__}",
        remedy=f"Give {method}.mappings: which norm feeds which layers, as patterns of module names.",
    )


OURS: dict[type, Any] = {AWQModifier: Awq, SmoothQuantModifier: SmoothQuant}


def build(modifier: Modifier, advance: Callable[[], None]) -> LlmModifier:
    """The modifier that `modifier` names, reporting to `advance` once for each part of the model that it finished."""
    module, _, attribute = modifier.target.partition(":")
    named = getattr(import_module(module), attribute)
    base = OURS.get(named, named)

    def on_sequential_epoch_end(self: Any, state: Any, event: Any, **kwargs: Any) -> None:
        base.on_sequential_epoch_end(self, state, event, **kwargs)
        advance()

    # A plain subclass with one method: a mixin that is a Modifier itself would bring its field defaults along, and
    # `requires_calibration_data: False` would win. The class keeps llm-compressor's name, which recipe.yaml records.
    namespace = {"__module__": __name__, "on_sequential_epoch_end": on_sequential_epoch_end}
    reporting = type(named.__name__, (base,), namespace)
    made: LlmModifier = reporting(**modifier.arguments)
    return made
