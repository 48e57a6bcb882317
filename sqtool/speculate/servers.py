"""The arms' servers: started side by side where that is faster, ended whatever happens."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from pathlib import Path
from types import TracebackType

from evals.server import VllmServer
from evals.spec import EngineSpec
from sqtool.cores import usable_cores
from sqtool.progress import Progress
from sqtool.speculate.arms import Arm
from sqtool.speculate.remote import Server, UrlServer, naming

LOG = "server.log"
AT_ONCE_ON_A_CPU = 2
CORES_OF_A_START = 2
"""A start is imports, loading and compiling: two cores are busy with it."""


def at_once(device: str, engines: Sequence[EngineSpec], cores: int | None = None) -> int:
    """How many servers start together. One by one on a GPU where any sizes its own KV cache: it measures the free
    memory while it starts, and would measure the others' growth as its own. With `kv_cache_memory_bytes` none does."""
    if device == "cpu":
        return AT_ONCE_ON_A_CPU
    if any(engine.kv_cache_memory_bytes is None for engine in engines):
        return 1
    return max(1, (cores or usable_cores()) // CORES_OF_A_START)


class Servers:
    """Context manager over the servers of some arms; leaving it ends all that it started, those still starting too."""

    def __init__(self, out: Path, root: Path, progress: Progress, *, per_request: bool, device: str) -> None:
        self._out, self._root, self._progress = out, root, progress
        self._per_request, self._device = per_request, device
        self._servers: dict[str, Server] = {}

    def __enter__(self) -> Servers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_all()

    def __getitem__(self, arm: str) -> Server:
        return self._servers[arm]

    def log(self, arm: str) -> Path | None:
        """Where the arm's server logs; None for one that runs already."""
        return None if isinstance(self._servers.get(arm), UrlServer) else self._out / "arms" / arm / LOG

    def start(self, arms: Sequence[Arm], engines: dict[str, EngineSpec]) -> None:
        """Start a server for each arm and wait until all answer; `EngineError` naming the first arm that fails.
        `engines` replaces the arms' own engine sections."""
        for arm in arms:
            if arm.url is not None:
                self._servers[arm.name] = UrlServer(arm)
                continue
            log = self._out / "arms" / arm.name / LOG
            log.parent.mkdir(parents=True, exist_ok=True)
            self._servers[arm.name] = VllmServer(
                arm.model,
                engines.get(arm.name, arm.engine),
                log=log,
                extra_args=arm.extra_args(per_request=self._per_request),
                root=self._root,
                progress=self._progress,
            )
        own = [engines.get(arm.name, arm.engine) for arm in arms if arm.url is None]
        with ThreadPoolExecutor(at_once(self._device, own), thread_name_prefix="vllm-start") as pool:
            starting = [pool.submit(self._enter, arm.name) for arm in arms]
            try:
                for done in as_completed(starting):
                    done.result()
            except BaseException:
                for future in starting:
                    future.cancel()
                # A start in another thread ends when its process is gone; it may be about to make one, hence the loop.
                while wait(starting, timeout=0.2).not_done:
                    self._stop_all(forget=False)
                raise

    def _enter(self, arm: str) -> None:
        with naming(arm, self.log(arm)):
            self._servers[arm].__enter__()

    def stop(self, arm: str) -> None:
        """End one arm's server."""
        server = self._servers.pop(arm, None)
        if server is not None:
            server.__exit__(None, None, None)

    def _stop_all(self, *, forget: bool = True) -> None:
        for server in self._servers.values():
            server.__exit__(None, None, None)
        if forget:
            self._servers.clear()
