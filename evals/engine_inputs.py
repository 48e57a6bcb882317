"""What shapes a vLLM server's answers beside the keys of the `engine` section: files that these name, and variables."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from evals.engine_env import DEFAULT_ENVIRONMENT
from evals.spec import EngineSpec
from sqtool.files import sha256_text
from sqtool.hygiene import is_secret

PREFIX = "VLLM_"
CHANGES_NO_ANSWER = frozenset(
    {
        # where things are cached
        "VLLM_ASSETS_CACHE", "VLLM_ASSETS_CACHE_MODEL_CLEAN", "VLLM_CACHE_ROOT", "VLLM_COMPILE_CACHE_SAVE_FORMAT",
        "VLLM_CONFIG_ROOT", "VLLM_DEBUG_DUMP_PATH", "VLLM_DISABLE_COMPILE_CACHE", "VLLM_MEDIA_CACHE",
        "VLLM_MEDIA_CACHE_MAX_SIZE_MB", "VLLM_MEDIA_CACHE_TTL_HOURS", "VLLM_RPC_BASE_PATH", "VLLM_XGRAMMAR_CACHE_MB",
        "VLLM_XLA_CACHE_PATH",
        # what is logged and reported
        "VLLM_CONFIGURE_LOGGING", "VLLM_DEBUG_LOG_API_SERVER_RESPONSE", "VLLM_DISABLE_LOG_LOGO", "VLLM_DO_NOT_TRACK",
        "VLLM_LOGGING_COLOR", "VLLM_LOGGING_CONFIG_PATH", "VLLM_LOGGING_LEVEL", "VLLM_LOGGING_PREFIX",
        "VLLM_LOGGING_STREAM", "VLLM_LOG_BATCHSIZE_INTERVAL", "VLLM_LOG_MODEL_INSPECTION", "VLLM_LOG_STATS_INTERVAL",
        "VLLM_NO_USAGE_STATS", "VLLM_PROCESS_NAME_PREFIX", "VLLM_RINGBUFFER_WARNING_INTERVAL", "VLLM_USAGE_SOURCE",
        "VLLM_USAGE_STATS_SERVER",
        # where processes meet, and how long they wait
        "VLLM_ENGINE_ITERATION_TIMEOUT_S", "VLLM_ENGINE_READY_TIMEOUT_S", "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS",
        "VLLM_HOST_IP", "VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH", "VLLM_LOOPBACK_IP",
        "VLLM_PORT", "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS",
    }
)  # fmt: skip
"""Variables that may differ between two measurements. All others count: which kernel runs is often up to one of them,
and one that is not known here is better counted in vain than overlooked."""


def variables(spec: EngineSpec, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The VLLM_* variables that the server of `spec` gets, without secrets; of a path a hash, for where this machine
    keeps things is not kept."""
    found = {**DEFAULT_ENVIRONMENT, **environment}
    if spec.kv_cache_memory_bytes is not None:  # see `server_environment`
        found.pop("VLLM_CPU_KVCACHE_SPACE", None)
    return {
        name: f"[a path, {sha256_text(value)[:12]}]" if value.startswith("/") else value
        for name, value in sorted(found.items())
        if name.startswith(PREFIX) and not is_secret(name)
    }


def shaping(found: Mapping[str, str]) -> dict[str, str]:
    """Those of the variables that can change an answer."""
    return {name: value for name, value in found.items() if name not in CHANGES_NO_ANSWER}


def named_files(spec: EngineSpec, root: Path) -> list[Path]:
    """The files that `extra_args` and `generation_config` name, and those in folders that they name.

    The server looks from the working folder; a file that only lies below `root` is counted too, which costs nothing.
    """
    if spec.kind != "vllm":
        return []
    words = [part for word in spec.extra_args for part in _parts(word)]
    if spec.generation_config not in ("auto", "vllm"):
        words.append(spec.generation_config)
    found: dict[Path, None] = {}
    for word in words:
        for base in (Path.cwd(), root):
            found |= dict.fromkeys(_files(base.resolve() / word))
    return list(found)


def _parts(word: str) -> Iterator[str]:
    """What of a word may be a path: all of it, what follows each `=`, and every text in it where it is JSON."""
    while word:
        yield word
        yield from _texts(_read(word))
        word = word.partition("=")[2]


def _read(word: str) -> Any:
    try:
        return json.loads(word)
    except (ValueError, RecursionError):
        return None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str) and value:
        yield value
    elif isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(inner)


def _files(path: Path) -> list[Path]:
    try:
        if path.is_dir():
            return [file for file in sorted(path.glob("*")) if file.is_file() and not file.name.startswith(".")]
        return [path] if path.is_file() else []
    except (OSError, ValueError):  # a word that is too long for a path, such as a template written out
        return []
