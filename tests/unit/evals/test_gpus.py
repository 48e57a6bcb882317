"""Which GPUs servers see: CUDA_VISIBLE_DEVICES as CUDA reads it."""

import sys
from types import SimpleNamespace

import pytest

from evals.engine_env import device_name
from evals.gpus import VARIABLE, chosen, visible
from sqtool.speculate.schedule import free_bytes

UUIDS = ["GPU-aa11", "GPU-aa22", "GPU-bb33"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, [0, 1, 2]),
        ("1", [1]),
        ("2,0", [2, 0]),
        (" 1 , 2 ", [1, 2]),
        ("", []),
        ("-1", []),
        ("0,-1,2", [0]),
        ("0,7,2", [0]),
        ("0,0,1", [0]),
        ("GPU-bb", [2]),
        ("GPU-aa22,GPU-aa11", [1, 0]),
        ("GPU-aa", []),
        ("NoDevFiles", []),
    ],
)
def test_visible_devices_are_read_as_cuda_reads_them(value: str | None, expected: list[int]) -> None:
    assert chosen(UUIDS, {} if value is None else {VARIABLE: value}) == expected


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three GPUs, the second one nearly full."""
    double = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 3,
        nvmlDeviceGetHandleByIndex=lambda i: i,
        nvmlDeviceGetUUID=lambda i: UUIDS[i].encode(),
        nvmlDeviceGetName=lambda i: ["H200", "H200", "L4"][i],
        nvmlDeviceGetMemoryInfo=lambda i: SimpleNamespace(total=100, free=[90, 5, 20][i]),
    )
    monkeypatch.setitem(sys.modules, "pynvml", double)


@pytest.mark.usefixtures("machine")
def test_free_memory_and_name_are_of_the_gpus_in_view(monkeypatch: pytest.MonkeyPatch) -> None:
    env = SimpleNamespace(device="cuda")
    monkeypatch.delenv(VARIABLE, raising=False)
    assert free_bytes(env) == 5  # type: ignore[arg-type]
    assert device_name("cuda") == "2x H200, 1x L4"
    monkeypatch.setenv(VARIABLE, "0,2")
    assert free_bytes(env) == 20  # type: ignore[arg-type]
    assert device_name("cuda") == "1x H200, 1x L4"
    with visible() as (_, gpus):
        assert [gpu.handle for gpu in gpus] == [0, 2]
    monkeypatch.setenv(VARIABLE, "")
    assert free_bytes(env) is None  # type: ignore[arg-type]
