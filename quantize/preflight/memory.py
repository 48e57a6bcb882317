"""Most memory that quantizing would need, by a stated rule, and how much this machine has."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from quantize.layers import Linear, Model
from quantize.preflight.smoothing import BLOCK

LIBRARIES = 800_000_000
"""Bytes of a process in which llm-compressor, torch and transformers work, without model and data; with it the rule
gives the peaks that were seen for a 15 M model, or up to 15 % more, where data was looked at, and too much without."""
RULE = (
    "host: libraries + the model in the type that is computed in + of the calibration tokens the hidden states twice, "
    "the attention masks of their rows and the positions' embeddings (on the device where a quarter of its free memory "
    "holds them); device: one decoder layer + a batch inside it or a batch of logits + what "
    "the method keeps (GPTQ: a Hessian for each layer of the block and two for the one at hand; AWQ: the block's "
    "weights again and the inputs of its parts); without an accelerator the host holds both, and for AWQ's search the "
    "outputs of the block's parts and one part's inputs and outputs once more"
)


@dataclass(frozen=True)
class Load:
    """What calibration puts through the model."""

    tokens: int
    batch_size: int
    row_length: int
    bytes_per_value: int
    """Of the type that is computed in: 4 for float32, which a CPU uses."""


@dataclass(frozen=True)
class Peak:
    """Bytes. `device` is 0 where the host does all the work."""

    host: int
    device: int


def peak_memory(model: Model, calibration: Mapping[str, str], load: Load, *, accelerator: bool) -> Peak:
    """The estimate. `calibration` gives for each quantized layer what its method does with data (`hessian`, `grid`,
    `forward`, `none`)."""
    values = sum(t.numel for t in model.tensors.values())
    weights = values * load.bytes_per_value
    blocks: dict[str, list[Linear]] = defaultdict(list)
    for name, linear in model.linears.items():
        found = BLOCK.match(name)
        if found is not None:
            blocks[found[1]].append(linear)
    largest = max(blocks.values(), key=lambda layers: sum(x.weights for x in layers), default=[])
    looks = any(kind != "none" for kind in calibration.values())
    hidden = _hidden(model)
    cached = states_bytes(hidden, _head(model, hidden), load) if looks else 0
    batch = load.batch_size * load.row_length
    vocabulary = int(model.config.get("vocab_size") or 0)
    inside = batch * max((x.rows + x.columns for x in largest), default=0) * 2 * load.bytes_per_value
    logits = batch * vocabulary * load.bytes_per_value
    work = (max(inside, logits) if looks else 0) + _kept(largest, calibration, load)
    block = sum(x.weights for x in largest) * load.bytes_per_value
    host = LIBRARIES + weights + cached
    return (
        Peak(host, block + work)
        if accelerator
        else Peak(host + work + _searched(largest, hidden, calibration, load), 0)
    )


def states_bytes(hidden: int, head: int, load: Load) -> int:
    """What calibration keeps between two decoder layers: `hidden` values of a token before and after a layer, each
    row's attention mask, the positions' embeddings for heads of `head` values."""
    return load.tokens * (2 * hidden + load.row_length + 2 * head) * load.bytes_per_value


def _kept(layers: list[Linear], calibration: Mapping[str, str], load: Load) -> int:
    kinds = {x.name: calibration.get(x.name, "none") for x in layers}
    hessians = [4 * x.columns**2 for x in layers if kinds[x.name] == "hessian"]
    grid = [x for x in layers if kinds[x.name] == "grid"]
    inputs = {x.columns for x in grid}
    return (
        sum(hessians)
        + 2 * max(hessians, default=0)
        + sum(x.weights for x in grid) * load.bytes_per_value
        + load.tokens * sum(inputs) * load.bytes_per_value
    )


def _searched(layers: list[Linear], hidden: int, calibration: Mapping[str, str], load: Load) -> int:
    """What AWQ's search keeps in host memory besides: outputs of attention and MLP, and of the part at hand the inputs,
    the outputs and those that are wanted by token (`quantize.backends.sieve`)."""
    inputs = [x.columns for x in layers if calibration.get(x.name) == "grid"]
    return load.tokens * (max(inputs) + 4 * hidden) * load.bytes_per_value if inputs else 0


def _hidden(model: Model) -> int:
    config = model.config.get("text_config") or model.config
    return int(config.get("hidden_size") or max((x.columns for x in model.linears.values()), default=0))


def _head(model: Model, hidden: int) -> int:
    config = model.config.get("text_config") or model.config
    return int(config.get("head_dim") or hidden // int(config.get("num_attention_heads") or 1))
