"""Hooks that watch a model run: running maxima of |x| while it calibrates, then what of the traffic lies beyond them.

Nothing that grows with the number of tokens is kept: per layer a few numbers a channel, per expert one count.
Import it only inside functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Range:
    """Magnitudes at one place of the model: `channels` of them a token (input features of a layer, or KV heads)."""

    names: list[str]
    """The layers that see this input: q, k and v share one."""
    maximum: torch.Tensor | None = None
    """[channels], over the calibration tokens, in the type of the activations."""
    traffic: torch.Tensor | None = None
    """[channels], over the traffic tokens."""
    beyond: torch.Tensor | None = None
    """[channels], traffic tokens above `maximum`."""
    tokens: int = 0
    """Traffic tokens."""
    saturated: int = 0
    """Those of them with some value above the largest calibrated one."""
    tokens_of: torch.Tensor | None = None
    """[kinds], traffic tokens of each kind."""
    saturated_of: torch.Tensor | None = None
    """[kinds], those of them that count in `saturated`."""
    values_of: torch.Tensor | None = None
    """[kinds], their values above the calibrated maximum of their own channel."""

    def calibrate(self, values: torch.Tensor) -> None:
        """`values` [tokens, channels], magnitudes."""
        largest = values.amax(0)
        self.maximum = largest if self.maximum is None else torch.maximum(self.maximum, largest)

    def compare(self, values: torch.Tensor, kinds: torch.Tensor | None, n_kinds: int) -> None:
        """`values` [tokens, channels], magnitudes; `kinds` [tokens], each below `n_kinds`, where they are known."""
        if self.maximum is None:  # an expert or a branch that no calibration token came to
            self.maximum = torch.zeros_like(values[0])
        if self.traffic is None:
            self.traffic = torch.zeros_like(self.maximum)
            self.beyond = torch.zeros_like(self.maximum, dtype=torch.int64)
            self.tokens_of, self.saturated_of, self.values_of = (
                torch.zeros(n_kinds, dtype=torch.int64, device=values.device) for _ in range(3)
            )
        assert self.beyond is not None
        assert self.tokens_of is not None
        assert self.saturated_of is not None
        assert self.values_of is not None
        over = values > self.maximum
        saturated = values.amax(1) > self.maximum.max()
        self.traffic = torch.maximum(self.traffic, values.amax(0))
        self.beyond += over.sum(0)
        self.tokens += len(values)
        self.saturated += int(saturated.sum())
        if kinds is not None:
            self.tokens_of += torch.bincount(kinds, minlength=n_kinds)
            self.saturated_of += torch.bincount(kinds[saturated], minlength=n_kinds)
            self.values_of.index_add_(0, kinds, over.sum(1))


@dataclass
class Routing:
    """Tokens that the router of one MoE layer selected each expert for, [experts]."""

    calibration: torch.Tensor
    traffic: torch.Tensor


@dataclass
class Batch:
    """One forward pass: which of its tokens are real, and of which kind each is."""

    keep: torch.Tensor
    """bool [texts * length]"""
    kinds: torch.Tensor
    """int64 [real tokens]"""


@dataclass
class Watch:
    """What was seen. `ranges` are of linear layers' inputs by the first layer's name, `keys` and `values` by the
    layer's number in the KV cache, `routing` by the name of the module that holds the experts."""

    n_kinds: int
    comparing: bool = False
    """False while calibration runs, true while traffic does."""
    ranges: dict[str, Range] = field(default_factory=dict)
    keys: dict[int, Range] = field(default_factory=dict)
    values: dict[int, Range] = field(default_factory=dict)
    routing: dict[str, Routing] = field(default_factory=dict)
    batch: Batch | None = None
    _last: tuple[torch.Tensor, Range] | None = None

    @contextmanager
    def on(self, model: Any) -> Iterator[None]:
        """Hooks on every linear layer but the output head, and on every module of experts, as long as the block
        lasts."""
        head = model.get_output_embeddings()
        handles = []
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and module is not head:
                handles.append(module.register_forward_pre_hook(self._input_of(name)))
            elif holds_experts(module):
                handles.append(module.register_forward_pre_hook(self._experts_of(name), with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def running(self, batch: Batch) -> Iterator[None]:
        """What hooks see now is `batch`."""
        self.batch, self._last = batch, None
        try:
            yield
        finally:
            self.batch = self._last = None

    def cache(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Keys and values [texts, heads, length, size] on their way into the cache, after rotary embedding."""
        for kind, states in ((self.keys, keys), (self.values, values)):
            found = kind.setdefault(layer, Range([f"layer {layer}"]))
            # Largest of each head, so that a head is what a channel is elsewhere.
            self._add(found, states.abs().amax(-1).transpose(1, 2))

    def _input_of(self, name: str) -> Any:
        def hook(_module: Any, inputs: tuple[Any, ...]) -> None:
            if inputs:
                self._input(name, inputs[0])

        return hook

    def _input(self, name: str, states: torch.Tensor) -> None:
        if self._last is not None and self._last[0] is states:
            # The very tensor that the layer before took: the same figures, counted once.
            if name not in self._last[1].names:
                self._last[1].names.append(name)
            return
        found = self.ranges.setdefault(name, Range([name]))
        self._add(found, states.abs())
        self._last = (states, found)

    def _experts_of(self, name: str) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            chosen = selected(args, kwargs)
            if chosen is None:
                return
            hidden = args[0] if args else kwargs["hidden_states"]
            self._input(name, hidden)
            self._routed(name, chosen.reshape(-1, chosen.shape[-1]), experts_in(module))

        return hook

    def _routed(self, name: str, chosen: torch.Tensor, experts: int) -> None:
        """`chosen` [tokens, experts a token], the indices that the router selected."""
        # A router may mark an unused place with an index past the last expert.
        counts = torch.bincount(self._real(chosen).flatten(), minlength=experts)[:experts]
        routing = self.routing.setdefault(name, Routing(torch.zeros_like(counts), torch.zeros_like(counts)))
        if self.comparing:
            routing.traffic += counts
        else:
            routing.calibration += counts

    def _real(self, rows: torch.Tensor) -> torch.Tensor:
        """Without the rows of padding. A part of the tokens (one expert's own) has lost their places: all of it."""
        assert self.batch is not None
        keep = self.batch.keep
        if len(rows) != len(keep) or len(self.batch.kinds) == len(keep):
            return rows
        return rows[keep.to(rows.device)]

    def _add(self, found: Range, magnitudes: torch.Tensor) -> None:
        assert self.batch is not None
        rows = self._real(magnitudes.reshape(-1, magnitudes.shape[-1]))
        if len(rows) == 0:
            return
        if not self.comparing:
            found.calibrate(rows)
            return
        kinds = self.batch.kinds.to(rows.device)
        found.compare(rows, kinds if len(kinds) == len(rows) else None, self.n_kinds)


def holds_experts(module: Any) -> bool:
    """Is it transformers' module of all experts of one layer? Its forward takes hidden states, then the indices of the
    experts that the router selected: the one thing that its MoE models (Mixtral, Qwen3-MoE, GPT-OSS, DeepSeek-V3 and
    some fifty more in 5.17) have in common, whatever their routers do before that."""
    return type(module).__name__.endswith("Experts") and experts_in(module) > 1


def experts_in(module: Any) -> int:
    """How many experts the module holds: its weights are stacked, [experts, ...]."""
    return next((p.shape[0] for p in module.parameters(recurse=False) if p.dim() == 3), 0)


def selected(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
    """The experts' indices [tokens, experts a token] among a module's arguments; None when there are none."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor) and value.dim() >= 2 and value.dtype in (torch.int64, torch.int32):
            return value
    return None
