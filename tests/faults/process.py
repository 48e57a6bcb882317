"""One real `sqtool` process on a project, everything that it started, and ways to kill any of it.

Every process carries a mark in its environment, which children inherit: so what is left of a run is found even where
it has a session of its own and another parent.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.faults.project import Project
from tests.faults.zygote import Forked, Zygote

CHECKOUT = Path(__file__).resolve().parents[2]
MARK = "SQTOOL_FAULTS_MARK"
ROLES = {
    "sqtool": re.compile(r"-m (sqtool|tests\.faults\.inject)\b"),
    "guard": re.compile(r"evals/guard\.py\b"),
    "server": re.compile(r"venv-fake/bin/vllm serve\b(?!.*guard)"),
    "engine": re.compile(r"^(cat|sleep 600)$"),
    "worker": re.compile(r"workers/worker\.py\b"),
}
"""Command lines of the parts of a run."""
ENDS_WITHIN = 60.0
"""Seconds within which a run must end after a fault, whatever it was."""
GONE_WITHIN = 20.0
"""Seconds within which everything that a dead run had started must be gone: vLLM's grace and some more."""


def marked(mark: str) -> dict[int, str]:
    """Process id -> command line of all living processes with this mark."""
    wanted = f"{MARK}={mark}".encode()
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                words = (folder / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
                found[int(folder.name)] = b" ".join(words).decode(errors="replace")
        except OSError:  # it ended meanwhile, or is nobody's business
            continue
    return found


def role(command: str) -> str:
    """Which part of a run a command line is."""
    if ROLES["guard"].search(command):  # its command line ends with the server's
        return "guard"
    return next((name for name, pattern in ROLES.items() if pattern.search(command)), "other")


def listening(pids: set[int]) -> list[int]:
    """Ports on which any of these processes listens."""
    import psutil

    ports = []
    for pid in pids:
        try:
            ports += [c.laddr.port for c in psutil.Process(pid).net_connections("tcp") if c.status == "LISTEN"]
        except psutil.Error:
            continue
    return ports


def port_is_free(port: int) -> bool:
    """Whether nobody listens on it."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


class Sqtool:
    """`with Sqtool(project, "quantize", "good.yaml") as run:` starts it; the end of the block ends everything.

    `plan` makes it fail inside at a chosen place (see `inject`). What it says on standard error comes line by line.
    """

    def __init__(
        self,
        project: Project,
        *words: str,
        plan: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
        preexec: Callable[[], None] | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        zygote: Zygote | None = None,
    ) -> None:
        self.mark = secrets.token_hex(8)
        self.lines: list[str] = []
        self.exit_code: int | None = None
        self._news = threading.Condition()
        self._ports: set[int] = set()
        command = ["sqtool"] if plan is None else ["tests.faults.inject", json.dumps(plan)]
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("FAULTS_", "PYTEST_"))}
        environment |= {
            MARK: self.mark,
            "PYTHONPATH": str(CHECKOUT),
            "SQTOOL_BACKENDS": str(project.backends),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            **(env or {}),
        }
        read_out, write_out = os.pipe() if stdout is None else (None, stdout)
        read_err, write_err = os.pipe() if stderr is None else (os.open(os.devnull, os.O_RDONLY), stderr)
        self.process: subprocess.Popen[bytes] | Forked
        if zygote is not None and preexec is None:
            self.process = zygote.start(list(words), plan, environment, project.root, write_out, write_err)
        else:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command, *words],
                cwd=project.root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=write_out,
                stderr=write_err,
                start_new_session=True,
                preexec_fn=preexec,
            )
        self.out = b""
        self._readers = [threading.Thread(target=self._read_err, args=[read_err], daemon=True)]
        os.close(write_err)
        os.close(write_out)
        if read_out is not None:
            self._readers.append(threading.Thread(target=self._read_out, args=[read_out], daemon=True))
        for reader in self._readers:
            reader.start()

    def _read_err(self, descriptor: int) -> None:
        with os.fdopen(descriptor, "rb") as stream:
            for line in stream:
                with self._news:
                    self.lines.append(line.decode(errors="replace").rstrip("\n"))
                    self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def _read_out(self, descriptor: int) -> None:
        with os.fdopen(descriptor, "rb") as stream:
            self.out = stream.read()

    def __enter__(self) -> Sqtool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _ in range(3):
            for pid in self.alive():
                kill(pid)
        self.process.wait()
        for reader in self._readers:
            reader.join(10)
        if isinstance(self.process, Forked):
            self.process.close()

    def alive(self) -> dict[int, str]:
        """Process id -> command line of everything of this run that lives."""
        # A forked process shows the environment and the words of the one that it was forked from.
        own = {self.process.pid: "-m sqtool"} if self.process.poll() is None else {}
        return marked(self.mark) | own

    @property
    def said(self) -> str:
        """All of standard error so far."""
        return "\n".join(self.lines)

    def until(self, text: str, seconds: float = ENDS_WITHIN) -> bool:
        """Wait until a line has `text`; False when the process ended without."""
        deadline = time.monotonic() + seconds
        seen = 0
        with self._news:
            while True:
                if any(text in line for line in self.lines[seen:]):
                    return True
                seen = len(self.lines)
                if not self._readers[0].is_alive() or time.monotonic() > deadline:
                    return False
                self._news.wait(0.05)

    def until_lines(self, count: int, seconds: float = ENDS_WITHIN) -> bool:
        """Wait until it has said so many lines; False when the process ended without."""
        deadline = time.monotonic() + seconds
        with self._news:
            while len(self.lines) < count:
                if not self._readers[0].is_alive() or time.monotonic() > deadline:
                    return False
                self._news.wait(0.05)
        return True

    def pids(self, name: str) -> list[int]:
        """Living processes of a role."""
        found = self.alive()
        self._ports |= set(listening(set(found)))
        return [pid for pid, command in found.items() if role(command) == name]

    def wait_for(self, name: str, seconds: float = ENDS_WITHIN, unlike: Sequence[int] = ()) -> int | None:
        """The first process of a role that appears (none of `unlike`); None when the run ends before."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = [pid for pid in self.pids(name) if pid not in unlike]
            if found:
                return found[0]
            if self.process.poll() is not None:
                return None
            self.after(0.01)
        return None

    def after(self, seconds: float) -> bool:
        """Wait so long, or until the end; whether it still runs."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def end(self, seconds: float = ENDS_WITHIN) -> int:
        """The exit code, -9 when a signal 9 ended it; TimeoutExpired when it hangs."""
        self.pids("server")
        self.exit_code = self.process.wait(seconds)
        for reader in self._readers:  # a child may hold the other end of the pipe for a moment
            reader.join(GONE_WITHIN)
        return self.exit_code

    def leftovers(self, seconds: float = GONE_WITHIN) -> list[str]:
        """Commands of processes that outlive the run, and ports on which somebody still listens; [] when all is gone
        within `seconds`."""
        deadline = time.monotonic() + seconds
        pause = threading.Event()
        while (left := self.alive()) and time.monotonic() < deadline:
            pause.wait(0.02)
        ports = [port for port in self._ports if not port_is_free(port)]
        processes = [f"process {pid}, {role(command)}: {command[-120:]}" for pid, command in left.items()]
        return processes + [f"port {port}" for port in ports]


def kill(pid: int, number: int = signal.SIGKILL) -> bool:
    """Send a signal; whether there was somebody to get it."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
