"""Where vLLM is installed, which kind of device it was built for, and what a server there may use of the machine."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evals.gpus import visible
from evals.spec import EngineSpec
from sqtool.cores import cpu_flags, usable_cores
from sqtool.errors import EngineError
from sqtool.hygiene import without_secrets

Device = Literal["cpu", "cuda"]

CHECKOUT = Path(__file__).resolve().parents[1]
GIB = 1 << 30
NO_GPU = "CUDA GPU"
"""The name of a GPU that cannot be asked for its own."""
KV_ELEMENT_BYTES = 4
"""float32, the widest that a cache element may be."""
CPU_KV_FLOOR = GIB
CPU_KV_SHARE = 0.25
SPECULATION_HEADROOM = 2
"""A draft model's layers share the cache; room for as much again covers any draft smaller than its target."""

FIXED_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
DEFAULT_ENVIRONMENT = {
    # vLLM's CPU kernels would serve a 4-bit weight-only checkpoint with 8-bit activations where the processor can
    # (AMX, Zen 4). The recipe said W4A16, so that is what gets measured, unless the user sets it otherwise.
    "VLLM_CPU_INT4_W4A8": "0",
}


@dataclass(frozen=True)
class VllmEnv:
    """An environment with vLLM in it. `version` is the distribution's, for example 0.32.0+cpu."""

    folder: Path
    vllm: Path
    device: Device
    version: str


def locate(folder: Path) -> VllmEnv:
    """The vLLM environment in `folder`; `EngineError` with the command that makes one when there is none."""
    script = folder / "bin" / "vllm"
    remedy = "`make vllm` sets it up; `engine.env` in the recipe names another environment."
    if not script.is_file():
        raise EngineError(f"no vLLM environment in {folder} ({script} does not exist)", remedy=remedy)
    found: dict[str, str] = {}
    for info in folder.glob("lib/python3*/site-packages/vllm*.dist-info"):
        name, _, version = info.name.removesuffix(".dist-info").partition("-")
        found[name] = version
    if "vllm" not in found:
        if "vllm_cpu" in found:
            raise EngineError(
                f"{folder} has vllm-cpu but not the metadata under the name vllm that `vllm serve` looks for",
                remedy="`make vllm` adds it.",
            )
        raise EngineError(f"{folder} holds no vLLM distribution", remedy=remedy)
    version = found["vllm"]
    return VllmEnv(folder, script, "cpu" if "cpu" in version or "vllm_cpu" in found else "cuda", version)


def installed(env: VllmEnv, distribution: str) -> str:
    """The version of a distribution there, `absent` without one."""
    found = sorted(env.folder.glob(f"lib/python3*/site-packages/{distribution}-*.dist-info"))
    return found[0].name.removesuffix(".dist-info").partition("-")[2] if found else "absent"


def resolve_env(spec: EngineSpec, root: Path | None) -> Path:
    """The folder that `spec.env` names: absolute, or relative to `root`, the working folder or this checkout."""
    named = _named(spec)
    if named.is_absolute():
        return named
    bases = [b for b in (root, Path.cwd(), CHECKOUT) if b is not None]
    return next((b / named for b in bases if (b / named).is_dir()), bases[0] / named)


def outside_env(spec: EngineSpec, root: Path) -> Path | None:
    """The folder that `spec.env` names, if whoever owns the project has not vouched for it by having it there.

    None for the default name, which nobody chose, and for folders below `root` or this checkout; links there were
    made by the owner, wherever they lead. `..` is never below anything: after a link it leads elsewhere than it says.
    """
    named = _named(spec)
    if str(named) == type(spec).model_fields["env"].default:
        return None
    folder = resolve_env(spec, root)
    inside = any(folder.is_relative_to(base) for base in (root, root.resolve(), CHECKOUT))
    return None if inside and ".." not in folder.parts else folder


def _named(spec: EngineSpec) -> Path:
    try:
        return Path(spec.env).expanduser()
    except RuntimeError:  # ~ of somebody whom this machine does not know
        return Path(spec.env)


def model_config(model: Path) -> dict[str, Any]:
    """The checkpoint's config.json; `EngineError` when the folder is no Hugging Face model."""
    path = model / "config.json"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise EngineError(
            f"{model} is no model that vLLM could load: cannot read config.json ({error})",
            remedy="Give a Hugging Face folder: config.json, *.safetensors, the tokenizer's files.",
        ) from None
    if not isinstance(value, dict):
        raise EngineError(f"{path} holds no JSON object", remedy="Give a Hugging Face model folder.")
    return value


def _lacks_bf16(device: Device) -> bool:
    """An x86 processor whose vector units know no bf16: vLLM and torch then fall back to a path that is several times
    slower than float32."""
    return device == "cpu" and platform.machine() in ("x86_64", "AMD64") and "avx512f" not in cpu_flags()


def resolve_dtype(spec: EngineSpec, device: Device) -> str:
    """The type of activations that `spec.dtype` means on this device; `auto` is the checkpoint's own."""
    return "float32" if spec.dtype == "auto" and _lacks_bf16(device) else spec.dtype


@dataclass(frozen=True)
class Unsupported:
    """Why an engine has no kernel for a checkpoint, and whether its weights unpacked to 16 bits would do instead."""

    reason: str
    unpackable: bool


def unsupported(model: Path, env: VllmEnv) -> Unsupported | None:
    """Why this engine has no kernel for the checkpoint's format on this device, or None.

    Known for vLLM on CPUs only, where such a checkpoint loads and then kills the engine at the first request: packed
    weight-only formats need 4 bits and AVX-512, FP8 needs dynamic activation scales. On a GPU vLLM itself says no at
    the start.
    """
    if env.device != "cpu":
        return None
    config = model_config(model).get("quantization_config") or {}
    if config.get("quant_method") in ("awq", "gptq"):
        return _no_words_kernel(config)
    for group in (config.get("config_groups") or {}).values():
        weights, activations = group.get("weights") or {}, group.get("input_activations")
        bits = weights.get("num_bits")
        if activations is None and weights.get("type") == "int":
            if bits != 4:
                return Unsupported(
                    f"vLLM's CPU kernel for packed weights takes 4 bits, the checkpoint has {bits}", True
                )
            if platform.machine() in ("x86_64", "AMD64") and "avx512f" not in cpu_flags():
                reason = "vLLM's CPU kernel for 4-bit weights needs AVX-512, which this processor lacks"
                return Unsupported(reason, True)
        if activations is not None and activations.get("type") == "float" and activations.get("dynamic") is False:
            return Unsupported("vLLM's CPU kernels have no FP8 with static activation scales", False)
    return None


def _no_words_kernel(config: dict[str, Any]) -> Unsupported | None:
    """The AWQ and GPTQ formats, which vLLM's CPU build runs with the same kernel as packed weights."""
    if config.get("bits") != 4:
        reason = f"vLLM's CPU kernel for packed weights takes 4 bits, the checkpoint has {config.get('bits')}"
        return Unsupported(reason, True)
    if platform.machine() in ("x86_64", "AMD64") and "avx512f" not in cpu_flags():
        return Unsupported("vLLM's CPU kernel for 4-bit weights needs AVX-512, which this processor lacks", True)
    return None


def cpu_kv_bytes(model: Path, spec: EngineSpec) -> int:
    """Bytes of KV cache for `max_num_seqs` sequences of full length, bounded by the machine's memory.

    Left alone, vLLM on a CPU takes nearly all memory; two servers, or one beside a quantization, then fail.
    """
    import psutil

    ceiling = max(CPU_KV_FLOOR, int(psutil.virtual_memory().total * CPU_KV_SHARE))
    config = model_config(model)
    config = config.get("text_config") or config
    try:
        heads = int(config.get("num_key_value_heads") or config["num_attention_heads"])
        head_dim = int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
        length = spec.max_model_len or int(config["max_position_embeddings"])
        per_token = int(config["num_hidden_layers"]) * heads * head_dim * 2 * KV_ELEMENT_BYTES
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return ceiling
    wanted = per_token * length * spec.max_num_seqs * SPECULATION_HEADROOM
    return min(ceiling, max(CPU_KV_FLOOR, wanted))


def server_arguments(
    model: Path, spec: EngineSpec, env: VllmEnv, port: int, name: str, extra: Sequence[str]
) -> list[str]:
    """The words after `vllm serve`. The API key is no argument: other users could read it in the process list."""
    args = [str(model), "--host", "127.0.0.1", "--port", str(port), "--served-model-name", name]
    args += [
        "--dtype",
        resolve_dtype(spec, env.device),
        "--kv-cache-dtype",
        spec.kv_cache_dtype,
        "--seed",
        str(spec.seed),
    ]
    args += ["--max-num-seqs", str(spec.max_num_seqs), "--generation-config", spec.generation_config]
    args += ["--disable-uvicorn-access-log"]
    if spec.max_model_len is not None:
        args += ["--max-model-len", str(spec.max_model_len)]
    if spec.gpu_memory_utilization is not None:
        args += ["--gpu-memory-utilization", str(spec.gpu_memory_utilization)]
    if spec.tensor_parallel_size != 1:
        args += ["--tensor-parallel-size", str(spec.tensor_parallel_size)]
    if spec.enforce_eager if spec.enforce_eager is not None else env.device == "cpu":
        args += ["--enforce-eager"]
    kv_bytes = spec.kv_cache_memory_bytes
    if kv_bytes is None and env.device == "cpu" and not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
        kv_bytes = cpu_kv_bytes(model, spec)
    if kv_bytes is not None:
        args += ["--kv-cache-memory-bytes", str(kv_bytes)]
    if spec.tool_call_parser:
        args += ["--enable-auto-tool-choice", "--tool-call-parser", spec.tool_call_parser]
    return [*args, *spec.extra_args, *extra]


def server_environment(env: VllmEnv, spec: EngineSpec, api_key: str) -> dict[str, str]:
    """Environment variables of the server process."""
    # The server is offline and reads a local folder: it needs none of our secrets, and so cannot log them.
    values = without_secrets(os.environ)
    for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
        values.pop(name, None)
    for key, value in DEFAULT_ENVIRONMENT.items():
        values.setdefault(key, value)
    values.update(FIXED_ENVIRONMENT)
    if spec.kv_cache_memory_bytes is not None:
        # vLLM lets this older variable win over the flag; the recipe must.
        values.pop("VLLM_CPU_KVCACHE_SPACE", None)
    values["VLLM_API_KEY"] = api_key
    values["PYTHONUNBUFFERED"] = "1"
    values["PATH"] = f"{env.folder / 'bin'}{os.pathsep}{values.get('PATH', '')}"
    return values


def device_name(device: Device) -> str:
    """What the machine calls the device: the processor with its core count, or the GPUs."""
    if device == "cuda":
        try:
            with visible() as (_, gpus):
                names = [gpu.name for gpu in gpus]
            return ", ".join(f"{names.count(n)}x {n}" for n in sorted(set(names)))
        except Exception:  # noqa: BLE001 - a name for the report is not worth failing for
            return NO_GPU
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
                break
    except OSError:
        pass
    isa = next((f for f in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if f in cpu_flags()), "")
    cores = usable_cores()
    return f"{model}, {cores} cores" + (f", {isa}" if isa else "")
