"""Reading a vLLM log: what explains a failure, and which kernels the engine chose."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_TELLING = 6
MAX_LINE = 300

_PREFIX = re.compile(
    r"^(\([^()]*pid=\d+\) ?)*((INFO|WARNING|ERROR|CRITICAL|DEBUG) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\] ?)?"
)
# pydantic puts the cause on the line after the exception's name ("Value error, ...").
_EXCEPTION = re.compile(
    r"^[\w.]*(Error|Exception|Interrupt)\b.*:.+"
    r"|^[\w.]*(OutOfMemoryError|MemoryError)\b"
    r"|^(Value error|Assertion failed), "
)
_ERROR_LINE = re.compile(r"\b(ERROR|CRITICAL)\b|^guard: |error: argument|unrecognized arguments")


@dataclass(frozen=True)
class Diagnosis:
    """A known cause of a failed server. `retry` is true where another attempt can succeed as things are."""

    cause: str
    remedy: str
    retry: bool = False


_MEMORY = (
    r"out ?of ?memory",
    r"can(not|'t) allocate memory",
    r"MemoryError",
    r"No available memory for the cache",
    r"less than desired GPU memory",
    r"KV cache is needed",
    r"larger than the (maximum number of tokens|available KV)",
    r"is less than requested memory",
)
_NO_KERNEL = (
    r"quantization method .* is not supported",
    r"not supported for the current (GPU|platform)",
    r"Failed to find a kernel",
    r"No compatible",
    r"Minimum capability",
    r"is not supported by",
    r"unsupported .*(scheme|quant)",
    r"No CompressedTensors",
)
_WEIGHTS = (
    r"SafetensorError",
    r"error while deserializing",
    r"(size|shape) mismatch",
    r"weights? (were|was) not initialized",
    r"not found in params_dict",
    r"Cannot find any model weights",
)
_MODEL = (
    r"Invalid repository ID or local directory",
    r"does not appear to have a file named",
    r"Unrecognized model",
    r"Can't load",
    r"Transformers does not recognize",
    r"couldn't (connect|find)",
    r"HFValidationError",
    r"architectures? .* (is|are) not supported",
    r"Tokenizer class .* does not exist",
    r"No such file or directory",
)
_ENVIRONMENT = (
    r"torchvision::nms does not exist",
    r"undefined symbol",
    r"libcuda\.so",
    r"No module named",
    r"No package metadata was found|PackageNotFoundError",
    r"Failed to infer device type",
)


# The first match wins, so the particular stands before the general.
_KNOWN: tuple[tuple[tuple[str, ...], Diagnosis], ...] = (
    (
        ("address already in use", "errno 98"),
        Diagnosis("its port was taken by another process", "Run again; the port is chosen anew.", retry=True),
    ),
    (
        ("unrecognized arguments", "error: argument", "invalid choice", "expected one argument"),
        Diagnosis("vLLM does not know one of its arguments", "Correct `engine.extra_args` in the recipe."),
    ),
    (
        ("invalid tool call parser",),
        Diagnosis("vLLM has no such tool-call parser", "Correct `engine.tool_call_parser`."),
    ),
    (
        ("user-specified max_model_len .* is greater than",),
        Diagnosis("engine.max_model_len is above what the model can do", "Lower `engine.max_model_len`."),
    ),
    (
        _MEMORY,
        Diagnosis(
            "there was not enough memory",
            "Lower `engine.max_model_len`, `engine.max_num_seqs` or `engine.gpu_memory_utilization`, set "
            "`engine.kv_cache_memory_bytes`, or end what else uses the memory.",
        ),
    ),
    (("no space left on device",), Diagnosis("the disk is full", "Free disk space and run again.")),
    (
        _ENVIRONMENT,
        Diagnosis("the vLLM environment is broken or built for another device", "`make vllm` sets it up anew."),
    ),
    (
        ("NVIDIA driver", "no CUDA-capable device", "CUDA driver version"),
        Diagnosis("the GPU cannot be used", "`sqtool doctor` says what the machine offers."),
    ),
    (
        ("trust.remote.code",),
        Diagnosis(
            "the model needs code from its own folder",
            "If you trust that code, add `--trust-remote-code` to `engine.extra_args`.",
        ),
    ),
    (
        _NO_KERNEL,
        Diagnosis(
            "this engine has no kernel for the checkpoint's format on this device",
            "Choose a format that the device can run, or evaluate on another device.",
        ),
    ),
    (_WEIGHTS, Diagnosis("the checkpoint's weights do not load", "Build the checkpoint again.")),
    (
        _MODEL,
        Diagnosis(
            "the model folder is not one that vLLM can load",
            "Give a Hugging Face folder: config.json, *.safetensors, the tokenizer's files.",
        ),
    ),
)


def _plain(line: str) -> str:
    return _PREFIX.sub("", line).strip()[:MAX_LINE]


def telling_lines(text: str) -> list[str]:
    """At most `MAX_TELLING` lines of a log that say what went wrong, oldest first, without prefixes and repeats.

    Exceptions first, since the cause is in them; then error lines; else the last lines of all.
    """
    lines = [(line, _plain(line)) for line in text.splitlines()]
    exceptions = [plain for _, plain in lines if _EXCEPTION.search(plain)]
    errors = [plain for line, plain in lines if plain and _ERROR_LINE.search(line) and not plain.startswith("File ")]
    for found in (exceptions, errors, [plain for _, plain in lines if plain]):
        unique = list(dict.fromkeys(found))
        if unique:
            # What failed first is the cause, what failed last is what the user sees: keep both ends.
            half = MAX_TELLING // 2
            return unique if len(unique) <= MAX_TELLING else [*unique[:half], *unique[-half:]]
    return []


def diagnose(text: str) -> Diagnosis | None:
    """The known cause that the error lines of a log show, or None."""
    lines = [line for line in text.splitlines() if _ERROR_LINE.search(line) or _EXCEPTION.search(_plain(line))]
    wanted = "\n".join(lines) or text[-4000:]
    for patterns, diagnosis in _KNOWN:
        if re.search("|".join(patterns), wanted, re.IGNORECASE):
            return diagnosis
    return None


PHASES: Sequence[tuple[str, str]] = (
    ("Application startup complete", "ready"),
    ("Starting vLLM server", "opening the port"),
    ("init engine", "engine is up"),
    ("KV cache size:", "preparing the kernels"),
    ("Loading weights took", "weights loaded"),
    ("Starting to load model", "loading weights"),
    ("Initializing a V1 LLM engine", "starting the engine"),
    ("Resolved architecture", "reading the model"),
)


def phase(text: str) -> str:
    """What the server was last seen doing, in words for a progress line."""
    for marker, words in PHASES:
        if marker in text:
            return words
    return "importing vLLM"


_KERNEL = re.compile(r"\b(?:Using|Selected) (\w*(?:Kernel|Linear|Method|Experts|Marlin)\w*)(?: for ([\w ./-]+))?")
_ATTENTION = re.compile(r"\bUsing (?:AttentionBackendEnum\.)?(\w+) (?:attention )?backend\b")
_CONFIG = re.compile(r"\b(dtype|kv_cache_dtype|quantization|enforce_eager|max_seq_len|enable_prefix_caching)=([^,\s]+)")


def facts(path: Path) -> dict[str, Any]:
    """What a healthy server's log says about how it computes.

    `kernels` is a sorted list of "KernelName (layer kind)"; `attention` is missing when the log does not name it.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    kernels = set()
    for match in _KERNEL.finditer(text):
        name, use = match.group(1), (match.group(2) or "").strip().rstrip(".")
        kernels.add(f"{name} ({use})" if use else name)
    found: dict[str, Any] = {"kernels": sorted(kernels)}
    attention = _ATTENTION.findall(text)
    if attention:
        found["attention"] = sorted(set(attention))
    config = next((line for line in text.splitlines() if "Initializing a V1 LLM engine" in line), "")
    for key, value in _CONFIG.findall(config):
        found.setdefault(key, value.removeprefix("torch."))
    return found
