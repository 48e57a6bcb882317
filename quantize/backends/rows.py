"""Calibration rows on their way into a model. Import it only inside functions.

A row holds several conversations. Their positions start anew, and transformers then builds a mask in which none sees
another, as long as it gets no attention mask of its own. Whether an architecture does so is tried, not assumed.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.utils.data import DataLoader


class _Seen(Exception):  # noqa: N818 - ends a forward pass early, nothing is wrong
    """Carries what one layer made of its input."""


def read_rows(model: Any, tokens: Path) -> list[dict[str, torch.Tensor]]:
    """Keyword arguments of a forward pass for each row; int64 [length] each. A `loss_mask` is not among them."""
    kept = load_file(tokens)
    ids = kept["input_ids"].long()
    if "position_ids" not in kept or "position_ids" not in inspect.signature(model.forward).parameters:
        return [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]
    places = kept["position_ids"].long()
    return [{"input_ids": row, "position_ids": place} for row, place in zip(ids, places, strict=True)]


def has_loss_mask(tokens: Path) -> bool:
    """Do the rows say which tokens the loss looks at?"""
    with safe_open(tokens, framework="pt") as kept:
        return "loss_mask" in kept.keys()  # noqa: SIM118 - not a dict


def loader(model: Any, tokens: Path, batch_size: int) -> Any:
    """Rows of equal length, in order: nothing is cut or padded by a collator, and nothing is shuffled again. Where the
    rows have a `loss_mask`, it goes with them; llm-compressor takes it out before the model runs."""
    rows: Any = read_rows(model, tokens)
    if has_loss_mask(tokens):
        masks = load_file(tokens)["loss_mask"].long()
        rows = [{**row, "loss_mask": mask} for row, mask in zip(rows, masks, strict=True)]
    return DataLoader(rows, batch_size=batch_size, shuffle=False)


def isolates(model: Any, first_layer: Any, tokens: Path) -> bool:
    """Whether the second conversation of a row looks to `first_layer` as it does alone (true without such a row).

    Runs the model as far as that layer only, whatever its size.
    """
    places = load_file(tokens).get("position_ids")
    shared = [] if places is None else ((places == 0).sum(dim=1) > 1).nonzero().flatten().tolist()
    if not shared:
        return True
    row = read_rows(model, tokens)[shared[0]]
    if "position_ids" not in row:
        return False
    _, start, *later = (row["position_ids"] == 0).nonzero().flatten().tolist()
    own = slice(start, later[0] if later else None)
    packed = _output(model, first_layer, row)[own]
    alone = _output(model, first_layer, {name: values[own] for name, values in row.items()})
    likeness = torch.nn.functional.cosine_similarity(packed.double(), alone.double(), dim=-1)
    return bool(likeness.min() > 0.999)


def _output(model: Any, layer: Any, row: dict[str, torch.Tensor]) -> torch.Tensor:
    """What `layer` makes of one row, [length, hidden]."""

    def stop(_module: Any, _inputs: Any, output: Any) -> None:
        raise _Seen(output[0] if isinstance(output, tuple) else output)

    handle = layer.register_forward_hook(stop)
    try:
        device = next(layer.parameters()).device
        with torch.inference_mode():
            model(**{name: values[None].to(device) for name, values in row.items()}, use_cache=False)
    except _Seen as seen:
        states: torch.Tensor = seen.args[0]
        return states[0]
    finally:
        handle.remove()
    raise RuntimeError("the first decoder layer was never called")
