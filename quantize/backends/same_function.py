"""Whether a method that rescales weights leaves the model the same function. Import it only inside functions.

AWQ and SmoothQuant divide what a norm gives and multiply the layers that read it. With a wrong idea of who reads what
the model is another one from then on, and nothing says so: llm-compressor 0.14 takes Gemma's `post_attention_layernorm`
for the norm before the MLP, which it is in Llama. The pipeline runs each decoder layer on the same inputs before and
after, so the two outputs are compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from quantize.backends.tracing import alike
from sqtool.errors import UsageError

TOKENS = 128


class FunctionWatch:
    """Compares every decoder layer's output before and after a method has rescaled it."""

    def __init__(self, layers: Iterable[torch.nn.Module]) -> None:
        self._layers = list(layers)
        self._before: dict[torch.nn.Module, torch.Tensor] = {}
        self._rescaled: set[torch.nn.Module] = set()
        self._hooks: list[Any] = []

    def start(self, model: torch.nn.Module, method: str) -> None:
        """`method` begins its pass over `model`."""
        names = {module: name for name, module in model.named_modules()}

        def compare(layer: torch.nn.Module, _inputs: Any, output: Any) -> None:
            states = (output[0] if isinstance(output, tuple) else output)[0, :TOKENS].detach()
            if layer not in self._before and layer not in self._rescaled:
                self._before[layer] = states.clone()
            elif layer in self._rescaled and layer in self._before:
                before = self._before.pop(layer)
                if not alike(before, states):
                    raise UsageError(
                        f"{method} changes what {names[layer]} of {type(model).__name__} computes, before anything is "
                        "rounded: it is wrong about which norm feeds which layers",
                        remedy=f"Give {method}.mappings for this architecture, or drop {method}.",
                    )

        self._hooks = [layer.register_forward_hook(compare) for layer in self._layers]

    def rescaled(self, modules: Iterable[torch.nn.Module]) -> None:
        """The decoder layers among `modules` are rescaled now."""
        self._rescaled.update(set(self._layers) & set(modules))

    def end(self) -> None:
        """The method's pass is over."""
        for hook in self._hooks:
            hook.remove()
        self._before.clear()
        self._rescaled.clear()
