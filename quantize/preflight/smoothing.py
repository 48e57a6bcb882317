"""Where AWQ's and SmoothQuant's mappings are found in a model, from the names of its tensors."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantize.layers import Linear, Model
from quantize.methods.base import MethodSpec
from quantize.preflight.mappings import Mapping as Smoothing
from quantize.preflight.mappings import Mappings, known
from sqtool.errors import UsageError, did_you_mean

BLOCK = re.compile(r"^(.*?\.?(?:layers|h|blocks|block)\.\d+)\.")
"""The decoder layer that a module belongs to."""
WITHOUT_WEIGHTS = re.compile(r"gelu|act_fn|activation")
"""Modules that have no tensor in the files, so that nothing here can say whether they are there."""
MIXTRAL = (
    (".block_sparse_moe.", ".mlp."),
    (".w1", ".gate_proj"),
    (".w3", ".up_proj"),
    (".w2", ".down_proj"),
)
"""What the loaded model calls the layers of Mixtral's files (`conversion_mapping` of transformers)."""


@dataclass(frozen=True)
class Found:
    """One mapping: in how many decoder layers it was found, and in how many its shapes do not go together."""

    mapping: Smoothing
    layers: int
    skipped: int = 0


@dataclass(frozen=True)
class Resolved:
    """All mappings of one method; `source` says whose they are."""

    method: str
    source: str
    found: tuple[Found, ...]

    def to_json(self) -> dict[str, Any]:
        """Keys: method, source, mappings (each with smooth, balance, layers, skipped)."""
        rows = [
            {
                "smooth": f.mapping.smooth,
                "balance": list(f.mapping.balance),
                "layers": f.layers,
                "skipped": f.skipped,
            }
            for f in self.found
        ]
        return {"method": self.method, "source": self.source, "mappings": rows}

    def warnings(self) -> list[str]:
        """One sentence for each mapping that is nowhere in the model, where others are."""
        return [
            f"{self.method}: nothing matches the mapping {f.mapping.smooth} -> {', '.join(f.mapping.balance)}"
            for f in self.found
            if not f.layers and not f.skipped and not WITHOUT_WEIGHTS.search(f.mapping.smooth)
        ]


def resolve_mappings(method: MethodSpec, model: Model, *, where: str) -> Resolved | None:
    """The mappings of `method` in `model`; None for a method without any.

    Raises UsageError when none is found, when a pattern of the recipe's own matches nothing, or when a mapping is
    complete in some decoder layers only (llm-compressor then puts several layers into one and stops).
    """
    if method.name not in ("awq", "smoothquant"):
        return None
    own = _own(getattr(method, "mappings", None))
    mappings, source = (
        (own, "the recipe's own") if own is not None else known(method.name, model.architecture, model.config)
    )
    if mappings is None:
        return Resolved(method.name, source, ())
    names = _modules(model)
    if own is not None:
        _check_patterns(own, names, where)
    found = tuple(_find(mapping, names, model.linears, where) for mapping in mappings)
    if not any(f.layers for f in found):
        raise UsageError(
            f"{where}: llm-compressor knows no {method.name} mappings that fit {model.architecture}",
            remedy=f"Give {method.name}.mappings: which norm feeds which layers, as patterns of module names.",
        )
    return Resolved(method.name, source, found)


def _own(given: Any) -> Mappings | None:
    """The recipe's mappings, whichever of the two forms they have."""
    if given is None:
        return None
    pairs = ((m.smooth_layer, m.balance_layers) if hasattr(m, "smooth_layer") else (m[1], m[0]) for m in given)
    return tuple(Smoothing(smooth, tuple(balance)) for smooth, balance in pairs)


def _modules(model: Model) -> list[str]:
    """Names of modules that have tensors, as the loaded model calls them."""
    names = dict.fromkeys([*(name.rsplit(".", 1)[0] for name in model.tensors), *model.linears])
    if any(".block_sparse_moe.experts." in name for name in names):
        return [_loaded_name(name) for name in names]
    return list(names)


def _loaded_name(name: str) -> str:
    for file, loaded in MIXTRAL:
        if file in name and (file.endswith(".") or name.endswith(file)):
            name = name.replace(file, loaded)
    return name


def _matcher(pattern: str) -> re.Pattern[str]:
    if pattern.startswith("re:"):
        return re.compile(pattern.removeprefix("re:"))
    return re.compile(re.escape(pattern) + "$")


def _check_patterns(mappings: Mappings, names: Sequence[str], where: str) -> None:
    for pattern in dict.fromkeys(p for m in mappings for p in (m.smooth, *m.balance)):
        try:
            matcher = _matcher(pattern)
        except re.error as error:
            raise UsageError(f"{where}.mappings: {pattern!r} is no regular expression: {error}") from None
        if any(matcher.match(name) for name in names):
            continue
        last = sorted({name.rsplit(".", 1)[-1] for name in names})
        hint = did_you_mean(pattern.removeprefix("re:").strip(".*$").rsplit(".", 1)[-1], last)
        raise UsageError(f"{where}.mappings: {pattern!r} matches no module; {hint}")


def _find(mapping: Smoothing, names: Iterable[str], linears: Mapping[str, Linear], where: str) -> Found:
    smooth, balance = _matcher(mapping.smooth), [_matcher(pattern) for pattern in mapping.balance]
    tops: dict[str, list[str]] = defaultdict(list)
    readers: dict[str, list[list[str]]] = defaultdict(lambda: [[] for _ in balance])
    for name in names:
        block = BLOCK.match(name)
        if block is None:
            continue
        if smooth.match(name):
            tops[block[1]].append(name)
        for at, matcher in enumerate(balance):
            if matcher.match(name):
                readers[block[1]][at].append(name)
    whole = [block for block in tops if block in readers and all(readers[block])]
    partly = [block for block in tops if block in readers and any(readers[block]) and not all(readers[block])]
    if whole and partly:
        missing = mapping.balance[readers[partly[0]].index([])]
        raise UsageError(
            f"{where}: in {partly[0]} nothing matches {missing}, which {mapping.smooth} feeds in other layers; "
            "llm-compressor cannot tell the layers apart then",
            remedy="Give mappings of your own that leave it out, or one mapping for each kind of layer.",
        )
    skipped = sum(_unfit(tops[block], readers[block], linears) for block in whole)
    return Found(mapping, len(whole) - skipped, skipped)


def _unfit(tops: Sequence[str], readers: Sequence[Sequence[str]], linears: Mapping[str, Linear]) -> bool:
    """Values of grouped-query attention feed several heads each, so v_proj cannot be scaled for o_proj."""
    (first, *_), (reader, *_) = tops, readers[0]
    if not reader.endswith(".o_proj") or first not in linears or reader not in linears:
        return False
    factor = 3 if first.endswith(".qkv_proj") else 1
    return first.endswith(("v_proj", "qkv_proj")) and linears[first].rows != factor * linears[reader].columns
