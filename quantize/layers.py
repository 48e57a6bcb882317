"""Which linear layers a model has, and which of them a method matches.

Matching follows compressed-tensors (`compressed_tensors.utils.match`): `re:` patterns match from the start of the
module's full name, anything else is a full name or a class name. From headers alone the one class that is known is
`Linear`: every two-dimensional weight that is no embedding.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantize.headers import Tensor, read_checkpoint
from sqtool.errors import UsageError, did_you_mean
from sqtool.files import read_json

EMBEDDINGS = re.compile(r"(^|\.)(embed_tokens|embeddings?|wte|wpe|tok_embeddings|word_embeddings|embed_in|shared)$")
ROUTERS = r"re:.*\.(gate|router|shared_expert_gate)$"
"""What sends tokens to experts: tiny, sensitive, and in 16 bits to every runtime, so no method quantizes it."""
STACKED = re.compile(r"^(.*\.experts)\.(gate_up_proj|down_proj)(?:\.weight)?$")
"""All experts of a layer in one three-dimensional tensor, as GPT-OSS has them in its files."""
FLOATS = frozenset({"BF16", "F16", "F32", "F64"})


@dataclass(frozen=True)
class Linear:
    """A linear layer: `rows` output features, `columns` input features."""

    name: str
    rows: int
    columns: int
    tied: bool = False
    """The output head of a model with tied embeddings: it has no weight of its own in the files."""
    stacked: bool = False
    """One expert's part of a tensor that holds all of them."""

    @property
    def weights(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True)
class Model:
    """What the headers and config.json say about a model."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    linears: Mapping[str, Linear]

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors.values())

    @property
    def architecture(self) -> str:
        names = self.config.get("architectures") or ["unknown"]
        return str(names[0])


def read_model(folder: Path) -> Model:
    """Read config.json and the safetensors headers of `folder`. Raises DataError when either is missing or damaged,
    UsageError when the model is quantized already."""
    tensors = read_checkpoint(folder)
    config = read_json(folder / "config.json")
    if "quantization_config" in config:
        method = config["quantization_config"].get("quant_method", "unknown")
        raise UsageError(
            f"{folder} is quantized already ({method})",
            remedy="Give the 16-bit model, or judge this one as it is with `quantize: {checkpoint: ...}`.",
        )
    linears = {
        name: Linear(name, t.shape[0], t.shape[1])
        for t in tensors.values()
        if t.name.endswith(".weight")
        and len(t.shape) == 2
        and t.dtype in FLOATS
        and not EMBEDDINGS.search(name := t.name.removesuffix(".weight"))
    }
    for tensor in tensors.values():
        linears |= {linear.name: linear for linear in _experts(tensor, config)}
    if config.get("tie_word_embeddings") and "lm_head" not in linears:
        head = next((t for t in tensors.values() if EMBEDDINGS.search(t.name.removesuffix(".weight"))), None)
        if head is not None and len(head.shape) == 2:
            linears["lm_head"] = Linear("lm_head", head.shape[0], head.shape[1], tied=True)
    return Model(config, tensors, linears)


def _experts(tensor: Tensor, config: Mapping[str, Any]) -> list[Linear]:
    """The linear layers in a tensor of stacked experts; none where it is something else."""
    found = STACKED.match(tensor.name)
    if found is None or len(tensor.shape) != 3 or tensor.dtype not in FLOATS:
        return []
    experts, first, second = tensor.shape
    # Either way round: the side that is as wide as the hidden states tells.
    inner = second if first == int(config.get("hidden_size") or 0) else first
    hidden = first + second - inner
    prefix, name = found.groups()
    if name == "down_proj":
        return [Linear(f"{prefix}.{n}.down_proj", hidden, inner, stacked=True) for n in range(experts)]
    parts = ("gate_proj", "up_proj")
    return [Linear(f"{prefix}.{n}.{p}", inner // 2, hidden, stacked=True) for n in range(experts) for p in parts]


def matches(name: str, pattern: str) -> bool:
    """Does `pattern` (a `re:` pattern, a full name, or `Linear`) match the linear layer `name`?"""
    if pattern.startswith("re:"):
        return re.match(pattern.removeprefix("re:"), name) is not None
    return pattern in (name, "Linear")


def select(linears: Mapping[str, Linear], targets: Iterable[str], ignore: Iterable[str], *, where: str) -> list[Linear]:
    """The layers that `targets` match and `ignore` does not, in the model's order.

    Raises UsageError for a pattern that matches nothing (`where` names the method in it), except for an ignored
    `lm_head`, which is the default and which some models do not have.
    """
    targets, ignore = list(targets), list(ignore)
    for key, patterns in (("targets", targets), ("ignore", ignore)):
        for pattern in patterns:
            if key == "ignore" and pattern == "lm_head":
                continue
            _check_pattern(linears, pattern, f"{where}.{key}")
    chosen = [
        linear
        for name, linear in linears.items()
        if any(matches(name, p) for p in targets) and not any(matches(name, p) for p in [*ignore, ROUTERS])
    ]
    if not chosen:
        raise UsageError(f"{where}: no layer is left to quantize", remedy="Make targets wider or ignore narrower.")
    return chosen


def _check_pattern(linears: Mapping[str, Linear], pattern: str, where: str) -> None:
    if pattern.startswith("re:"):
        try:
            re.compile(pattern.removeprefix("re:"))
        except re.error as error:
            raise UsageError(f"{where}: {pattern!r} is no regular expression: {error}") from None
    if any(matches(name, pattern) for name in linears):
        return
    names = sorted({name.rsplit(".", 1)[-1] for name in linears} | {"Linear"})
    hint = did_you_mean(pattern.removeprefix("re:").strip(".*$").rsplit(".", 1)[-1], names)
    raise UsageError(
        f"{where}: {pattern!r} matches no linear layer; {hint}",
        remedy="Give `Linear`, a full layer name, or a pattern such as `re:.*down_proj`.",
    )
