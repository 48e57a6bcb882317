"""Calibration rows on their way into a model. Import it only inside functions.

A row holds several conversations. Their positions start anew, and transformers then builds a mask in which none sees
another, as long as it gets no attention mask of its own. Whether an architecture does so is tried, not assumed.
"""

from __future__ import annotations

import inspect
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from quantize.preflight.memory import Load, states_bytes

STATES_SHARE = 0.25
"""Of the GPU's free memory for hidden states between decoder layers; the layer at work needs the rest."""


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


def states_device(model: Any, tokens: Path, batch_size: int) -> str:
    """Where hidden states of the rows best wait between two decoder layers, in torch's words: on the GPU, if
    `STATES_SHARE` of its free memory holds them, else in host memory."""
    config = model.config.get_text_config()
    hidden = getattr(config, "hidden_size", None)
    if hidden is None or not torch.cuda.is_available():
        return "cpu"
    with safe_open(tokens, framework="pt") as kept:
        rows, length = kept.get_slice("input_ids").get_shape()
    # Models without attention have no heads; as large as the hidden state is then too much rather than too little.
    head = getattr(config, "head_dim", None) or hidden // (getattr(config, "num_attention_heads", None) or 1)
    load = Load(rows * length, batch_size, length, model.dtype.itemsize)
    free, _ = torch.cuda.mem_get_info()
    return "cuda" if states_bytes(hidden, head, load) <= free * STATES_SHARE else "cpu"


def has_loss_mask(tokens: Path) -> bool:
    """Do the rows say which tokens the loss looks at?"""
    with safe_open(tokens, framework="pt") as kept:
        return "loss_mask" in kept.keys()  # noqa: SIM118 - not a dict


def loader(model: Any, tokens: Path, batch_size: int, *, apart: bool = False) -> Any:
    """Rows of equal length, in order: nothing is cut or padded by a collator, and nothing is shuffled again. Where the
    rows have a `loss_mask`, it goes with them; llm-compressor takes it out before the model runs.

    With `apart` every conversation is a batch of its own: slower, for models in which those of a row see each other.
    """
    if apart:
        return DataLoader(conversations(tokens), batch_size=1, shuffle=False)
    rows: Any = read_rows(model, tokens)
    if has_loss_mask(tokens):
        masks = load_file(tokens)["loss_mask"].long()
        rows = [{**row, "loss_mask": mask} for row, mask in zip(rows, masks, strict=True)]
    return DataLoader(rows, batch_size=batch_size, shuffle=False)


def conversations(tokens: Path) -> Any:
    """Keyword arguments of a forward pass for each conversation; int64 [its length] each. A `loss_mask` goes along."""
    kept = load_file(tokens)
    places = kept["position_ids"]
    columns = {name: kept[name].long() for name in ("input_ids", "loss_mask") if name in kept}
    found = []
    for row in range(len(places)):
        starts = [*(places[row] == 0).nonzero().flatten().tolist(), len(places[row])]
        for start, end in pairwise(starts):
            if end - start > 1:
                one: dict[str, Any] = {name: values[row, start:end] for name, values in columns.items()}
                found.append({**one, "attention_mask": torch.ones_like(one["input_ids"])})
    return found


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
    packed = output_of(model, first_layer, {name: values[None] for name, values in row.items()})[0, own]
    alone = output_of(model, first_layer, {name: values[None, own] for name, values in row.items()})[0]
    likeness = torch.nn.functional.cosine_similarity(packed.double(), alone.double(), dim=-1)
    return bool(likeness.min() > 0.999)


def output_of(model: Any, layer: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """What `layer` makes of a batch, [rows, length, hidden]; the model is run as far as that layer only."""

    def stop(_module: Any, _inputs: Any, output: Any) -> None:
        raise _Seen(output[0] if isinstance(output, tuple) else output)

    handle = layer.register_forward_hook(stop)
    try:
        device = next(layer.parameters()).device
        with torch.no_grad():
            model(**{name: values.to(device) for name, values in batch.items()}, use_cache=False)
    except _Seen as seen:
        states: torch.Tensor = seen.args[0]
        return states
    finally:
        handle.remove()
    raise RuntimeError("the first decoder layer was never called")
