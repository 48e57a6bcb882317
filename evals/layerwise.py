"""How far each decoder layer of the candidate is from the baseline's, given the same input.

Errors that pile up over depth say little about where they come from. So every layer of the candidate gets what the
baseline's layer got, and is judged by what it adds to the residual stream:

    relative_error = rms(candidate's output - baseline's output) / rms(baseline's output - its input)

A method that moves scales between a norm and the linear layers behind it (AWQ, SmoothQuant) changes nothing of that,
for both are inside the layer. Where it is large, that layer is the one to leave in more bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

FILE = "layers.safetensors"
BROKEN = 1e9
MOST_TOKENS = 256
"""Kept of one text: a 70B model's layers then take 340 MB on disk, and no more than one layer at a time in memory."""


def decoder_layers(model: torch.nn.Module) -> list[tuple[str, torch.nn.Module]]:
    """(name, module) of the decoder layers: the model's longest list of modules."""
    from torch.nn import ModuleList

    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, ModuleList)]
    if not lists:
        return []
    name, layers = max(lists, key=lambda entry: len(entry[1]))
    return [(f"{name}.{index}", layer) for index, layer in enumerate(layers)]


def keep_layers(model: torch.nn.Module, tokens: Sequence[int], out: Path) -> None:
    """Write what goes into each layer for these tokens and what comes out, [tokens, hidden] each, to `out/FILE`."""
    import torch
    from safetensors.torch import save_file

    kept: dict[str, torch.Tensor] = {}
    hooks = []
    for name, layer in decoder_layers(model):

        def seen(_module: Any, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
            kept[f"{name}.input"] = _first(args, kwargs)[0].cpu().contiguous().clone()
            kept[f"{name}.output"] = _tensor(output)[0].cpu().contiguous().clone()

        hooks.append(layer.register_forward_hook(seen, with_kwargs=True))
    _forward(model, tokens, hooks)
    kept["tokens"] = torch.tensor(list(tokens[:MOST_TOKENS]))
    save_file(kept, out / FILE)


def compare_layers(model: torch.nn.Module, states: Path) -> list[dict[str, Any]]:
    """[{"name", "relative_error"}] in the order of depth, from what `keep_layers` wrote to the folder `states`.

    Empty when the two models have no layers in common. A layer that gives NaN or infinity has the error BROKEN, for
    JSON has neither.
    """
    from safetensors import safe_open

    if not (states / FILE).is_file():
        return []
    found: list[dict[str, Any]] = []
    with safe_open(states / FILE, framework="pt") as kept:
        names = set(kept.keys())
        hooks = []
        for name, layer in decoder_layers(model):
            if f"{name}.input" not in names:
                continue

            def given(_module: Any, args: Any, kwargs: Any, name: str = name) -> Any:
                before = _first(args, kwargs)
                wanted = kept.get_tensor(f"{name}.input").to(before.device, before.dtype).reshape(before.shape)
                if args:
                    return (wanted, *args[1:]), kwargs
                return args, {**kwargs, "hidden_states": wanted}

            def judged(_module: Any, _args: Any, output: Any, name: str = name) -> None:
                ours = _tensor(output)[0].float().cpu()
                before, after = (kept.get_tensor(f"{name}.{side}").float() for side in ("input", "output"))
                added = (after - before).square().mean().sqrt()
                error = float((ours - after).square().mean().sqrt() / added)
                found.append({"name": name, "relative_error": error if math.isfinite(error) else BROKEN})

            hooks += [
                layer.register_forward_pre_hook(given, with_kwargs=True),
                layer.register_forward_hook(judged),
            ]
        _forward(model, kept.get_tensor("tokens").tolist(), hooks)
    return found


def _forward(model: torch.nn.Module, tokens: Sequence[int], hooks: Sequence[Any]) -> None:
    import torch

    device = next(model.parameters()).device
    try:
        model(torch.tensor([list(tokens[:MOST_TOKENS])], device=device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()


def _first(args: Any, kwargs: Any) -> torch.Tensor:
    tensor: torch.Tensor = args[0] if args else kwargs["hidden_states"]
    return tensor


def _tensor(output: Any) -> torch.Tensor:
    tensor: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return tensor
