"""A model folder is a stranger's until it was looked at: what is checked before any library opens it.

Only safetensors with headers that hold (`quantize.headers`), no link that leaves the folder, JSON that is JSON.
Python code that comes along is not a fault: it is never run unless `--trust-remote-code` is given.
"""

from __future__ import annotations

from pathlib import Path

from quantize.headers import INDEX, PICKLES, read_checkpoint, weight_files
from sqtool.errors import DataError
from sqtool.files import read_json

LARGEST_CONFIG = 16 * 1024 * 1024
"""Bytes of a JSON file that describes a model; the longest real ones (quantization of each layer) have some 100 KB."""
CONFIGS = ("config.json", "generation_config.json", "tokenizer_config.json", INDEX)


def check_model(folder: Path) -> None:
    """Raises DataError, with a remedy, for a model folder that must not be opened.

    A folder without any weights passes: a tokenizer and a config may be all that a server elsewhere leaves to do here.
    """
    base = folder.resolve()
    _check_links(base)
    for name in CONFIGS:
        path = base / name
        if not path.is_file():
            continue
        if path.stat().st_size > LARGEST_CONFIG:
            remedy = "No model is described at such length; do not use this folder."
            raise DataError(path, f"larger than {LARGEST_CONFIG >> 20} MiB", remedy=remedy)
        if not isinstance(read_json(path), dict):
            raise DataError(path, "expected a JSON object", remedy="Fetch the model again.")
    if (base / "adapter_config.json").is_file():
        # transformers would load the adapter's weights beside the model's, pickles included.
        remedy = "Merge the adapter into its base model (peft's merge_and_unload) and give the merged folder."
        raise DataError(base, "is an adapter, or has one in it", field="adapter_config.json", remedy=remedy)
    if any(any(base.glob(pattern)) for pattern in ("*.safetensors", INDEX)):
        read_checkpoint(base)
    elif any(any(base.glob(pattern)) for pattern in PICKLES):
        weight_files(base)  # says so


def _check_links(base: Path) -> None:
    """A link out of the folder would make the reader's own files part of a model, and of its release."""
    allowed = [base]
    if base.parent.name == "snapshots":  # a hub cache: snapshots/<commit>/<file> links to blobs/<hash>
        allowed.append(base.parent.parent / "blobs")
    for path in base.rglob("*"):
        if path.is_symlink():
            real = path.resolve()
            if not any(real.is_relative_to(place) for place in allowed):
                name = path.relative_to(base).as_posix()
                remedy = "Put the file itself there; a model folder must hold all that belongs to it."
                raise DataError(base, f"is a link that leaves the folder (to {real})", field=name, remedy=remedy)
