"""How long quantizing will take, from the real methods on copies of the model with one and two decoder layers.

A run's time is taken to be a start, plus a part for each decoder layer, each of them with a part for each calibration
row. Four short runs (one and two layers, few rows and twice as many) give the four numbers; a run before them brings
the libraries in, which the real run has to pay once as well.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize.checkpoint import copy_companions
from quantize.headers import read_checkpoint
from quantize.preflight.smoothing import BLOCK
from sqtool.errors import UsageError
from sqtool.files import read_json, write_json
from sqtool.progress import SILENT, Progress

if TYPE_CHECKING:
    from quantize.spec import QuantizeSpec

LAYERS = "num_hidden_layers"
PER_LAYER = ("layer_types", "mlp_layer_types", "sliding_window_pattern")
"""Keys of config.json that hold one entry a decoder layer, when they hold a list."""


@dataclass(frozen=True)
class Trial:
    """Seconds of the runs, named by layers and rows, and what follows for the whole model."""

    first: float
    """One layer, few rows, libraries not yet loaded."""
    one_few: float
    two_few: float
    one_many: float
    two_many: float
    few: int
    many: int
    layers: int
    rows: int

    @property
    def seconds(self) -> float:
        """For `layers` layers and `rows` rows."""
        layer = max(0.0, self.two_few - self.one_few)
        row = max(0.0, self.one_many - self.one_few) / (self.many - self.few)
        row_in_layer = max(0.0, (self.two_many - self.one_many) - layer) / (self.many - self.few)
        more_rows, more_layers = max(0, self.rows - self.few), self.layers - 1
        return self.first + more_layers * layer + more_rows * (row + more_layers * row_in_layer)

    def to_json(self) -> dict[str, Any]:
        """The measured seconds, what was extrapolated to, and how."""
        rule = (
            f"extrapolated from runs of one and two decoder layers with {self.few} and {self.many} random rows to "
            f"{self.layers} layers and {self.rows} rows"
        )
        return {**asdict(self), "seconds": round(self.seconds, 1), "rule": rule}


def trial(
    spec: QuantizeSpec, *, model: Path, tokens: int, row_length: int, seed: int = 0, progress: Progress = SILENT
) -> Trial:
    """Run the methods of `spec` on small copies of the model in folder `model`; imports torch.

    `tokens` is the size of the calibration set, `row_length` that of its rows. The rows of the trial hold random
    tokens: the time does not depend on them. Raises what `quantize.run.quantize` raises, UsageError for targets that
    leave nothing of a single layer.
    """
    few, many = spec.batch_size, 2 * spec.batch_size
    layers = _number_of_layers(model)
    rows = max(1, -(-tokens // row_length)) if spec.needs_calibration else few
    with tempfile.TemporaryDirectory(prefix="sqtool-trial-") as place, progress.task("trial", total=5) as task:
        work = Path(place)
        for count in (1, 2):
            shrink(model, work / f"model-{count}", layers=count)

        def run(count: int, row_count: int) -> float:
            seconds = _run(spec, work, count, row_count, row_length, seed)
            task.advance()
            return seconds

        first, one_few, two_few = run(1, few), run(1, few), run(2, few)
        one_many, two_many = run(1, many), run(2, many)
    return Trial(first, one_few, two_few, one_many, two_many, few, many, layers, rows)


def _run(spec: QuantizeSpec, work: Path, count: int, rows: int, length: int, seed: int) -> float:
    import numpy as np
    from safetensors.numpy import save_file

    from quantize.run import quantize

    model = work / f"model-{count}"
    vocabulary = int(_text(read_json(model / "config.json")).get("vocab_size") or 256)
    ids = np.random.default_rng(seed).integers(0, vocabulary, (rows, length), dtype=np.int32)
    places = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    save_file({"input_ids": ids, "position_ids": places}, work / "tokens.safetensors")
    with tempfile.TemporaryDirectory(dir=work) as out:
        start = time.monotonic()
        try:
            quantize(
                spec, model=model, calibration=work / "tokens.safetensors", seed=seed, out=Path(out), progress=SILENT
            )
        except UsageError as error:
            raise UsageError(
                f"the trial on one decoder layer failed: {error.message}",
                remedy="A trial needs targets that match the layers of each block alike; plan without --trial.",
            ) from error
        return time.monotonic() - start


def shrink(model: Path, out: Path, *, layers: int) -> None:
    """Write `model` to `out` with its most common decoder layer `layers` times; reads no other layer's weights."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    tensors = read_checkpoint(model)
    chosen = _typical_block(tensors)
    prefix, _, number = chosen.rpartition(".")
    wanted: dict[str, torch.Tensor] = {}
    for path in sorted({t.file for t in tensors.values()}):
        with safe_open(path, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dict
                block = BLOCK.match(name)
                if block is None:
                    wanted[name] = opened.get_tensor(name)
                elif block[1] == chosen:
                    rest = name.removeprefix(chosen)
                    wanted |= {f"{prefix}.{n}{rest}": opened.get_tensor(name).clone() for n in range(layers)}
    out.mkdir(parents=True)
    save_file(wanted, out / "model.safetensors", metadata={"format": "pt"})
    write_json(out / "config.json", _shrunk(read_json(model / "config.json"), int(number), layers))
    copy_companions(model, out)


def _typical_block(tensors: Mapping[str, Any]) -> str:
    """The first decoder layer of the most frequent shape (mixtures of experts begin with a few dense ones)."""
    shapes: dict[str, list[Any]] = {}
    for name, tensor in tensors.items():
        block = BLOCK.match(name)
        if block is not None:
            shapes.setdefault(block[1], []).append((name.removeprefix(block[1]), tensor.shape))
    if not shapes:
        raise UsageError("the model has no decoder layers that a trial could take apart")
    keys = {block: json.dumps(sorted(found)) for block, found in shapes.items()}
    usual = Counter(keys.values()).most_common(1)[0][0]
    numbered = [block for block, key in keys.items() if key == usual]
    return min(numbered, key=lambda block: int(re.findall(r"\d+", block)[-1]))


def _shrunk(config: dict[str, Any], block: int, layers: int) -> dict[str, Any]:
    """config.json for a model of `layers` layers like its layer `block`."""
    changed = dict(config)
    if isinstance(changed.get("text_config"), dict):
        changed["text_config"] = _shrunk(changed["text_config"], block, layers)
    if LAYERS not in changed:
        return changed
    changed[LAYERS] = layers
    for key in PER_LAYER:
        if isinstance(changed.get(key), list):
            changed[key] = [changed[key][block]] * layers
    if int(changed.get("first_k_dense_replace") or 0) <= block and "first_k_dense_replace" in changed:
        changed["first_k_dense_replace"] = 0
    if changed.get("mlp_only_layers"):
        changed["mlp_only_layers"] = list(range(layers)) if block in changed["mlp_only_layers"] else []
    return changed


def _text(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = config.get("text_config") or config
    return found


def _number_of_layers(model: Path) -> int:
    found = _text(read_json(model / "config.json")).get(LAYERS)
    if not isinstance(found, int) or found < 1:
        raise UsageError(f"{model}/config.json does not say how many decoder layers there are ({LAYERS})")
    return found
