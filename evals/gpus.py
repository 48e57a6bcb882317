"""The GPUs that this process's servers would see, through NVML, which itself knows nothing of CUDA_VISIBLE_DEVICES."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

VARIABLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Gpu:
    """One GPU: NVML's handle, its name, and its memory in bytes."""

    handle: Any
    name: str
    total: int
    free: int


def chosen(uuids: list[str], environment: Mapping[str, str] = os.environ) -> list[int]:
    """Positions of the GPUs that CUDA_VISIBLE_DEVICES leaves, in its order; all without it.

    `uuids` are NVML's, in its own order, which is CUDA's where CUDA_DEVICE_ORDER is PCI_BUS_ID or the GPUs are alike.
    As in CUDA, the first entry that names no GPU ends the list, and an empty variable leaves none. An entry of a MIG
    slice names no GPU here. Source: CUDA C++ Programming Guide, "CUDA Environment Variables".
    """
    wanted = environment.get(VARIABLE)
    if wanted is None:
        return list(range(len(uuids)))
    found: list[int] = []
    for entry in (part.strip() for part in wanted.split(",")):
        if entry.isdecimal():
            places = [int(entry)] if int(entry) < len(uuids) else []
        else:
            places = [place for place, uuid in enumerate(uuids) if entry and uuid.startswith(entry)]
        if len(places) != 1 or places[0] in found:
            break
        found += places
    return found


@contextmanager
def visible() -> Iterator[tuple[Any, list[Gpu]]]:
    """The `pynvml` module, started, and the GPUs in view. Whatever NVML lacks comes as NVML's own error."""
    import pynvml

    pynvml.nvmlInit()
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        gpus = []
        for place in chosen([_text(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles]):
            memory = pynvml.nvmlDeviceGetMemoryInfo(handles[place])
            name = _text(pynvml.nvmlDeviceGetName(handles[place]))
            gpus.append(Gpu(handles[place], name, int(memory.total), int(memory.free)))
        yield pynvml, gpus
    finally:
        pynvml.nvmlShutdown()


def _text(value: Any) -> str:
    """Older bindings give bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)
