"""How many servers start together."""

from evals.spec import EngineSpec
from sqtool.speculate.servers import at_once

FIXED, OWN = EngineSpec(kv_cache_memory_bytes=1 << 30), EngineSpec()


def test_servers_with_a_fixed_cache_start_together_on_a_gpu() -> None:
    assert at_once("cuda", [FIXED, FIXED], cores=16) == 8
    assert at_once("cuda", [FIXED], cores=1) == 1


def test_a_server_that_measures_free_memory_starts_alone() -> None:
    assert at_once("cuda", [FIXED, OWN], cores=64) == 1


def test_a_cpu_starts_two() -> None:
    assert at_once("cpu", [OWN, OWN], cores=64) == 2
