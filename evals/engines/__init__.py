"""Engines: what answers. Adding one is one file, one line here and its keys in `EngineSpec`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from evals.engine_inputs import shaping
from evals.engines.base import Engine
from evals.spec import EngineSpec
from sqtool.progress import SILENT, Progress

ENGINES = {
    "vllm": "evals.engines.vllm:VllmEngine",
    "openai": "evals.engines.openai:OpenAiEngine",
    "hf": "evals.engines.hf:HfEngine",
}


def engine_class(spec: EngineSpec) -> type[Engine]:
    """The class of the kind that the section names."""
    module, _, attribute = ENGINES[spec.kind].partition(":")
    found: type[Engine] = getattr(import_module(module), attribute)
    return found


def open_engine(spec: EngineSpec, *, model: Path, out: Path, root: Path, progress: Progress = SILENT) -> Engine:
    """An engine for the checkpoint in `model`, to be used in a `with`; it leaves its logs in `out`."""
    return engine_class(spec)(spec, model=model, out=out, root=root, progress=progress)


SAME_ON_BOTH_SIDES = ("engine", "version", "device_class", "dtype", "kv_cache_dtype")


def conditions(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Of an engine's facts, what both sides of a comparison must share.

    Of the KV cache's type it is what was asked for: a checkpoint may bring its own (`kv_cache_scheme`), and its loss
    is the candidate's, as that of its weights is.
    `environment` is one text, of the VLLM_* variables that can change an answer. The cache's size is none of the
    conditions, whoever asked for it.
    """
    found = {name: facts.get(name) for name in SAME_ON_BOTH_SIDES}
    flags = [str(word) for word in facts.get("flags") or ()]
    if "--kv-cache-dtype" in flags[:-1]:
        found["kv_cache_dtype"] = flags[flags.index("--kv-cache-dtype") + 1]
    variables = sorted(shaping(facts.get("environment") or {}).items())
    found["environment"] = " ".join(f"{k}={v}" for k, v in variables if k != "VLLM_CPU_KVCACHE_SPACE") or None
    return found
