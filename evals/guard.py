"""Runs a command and kills everything it started when this guard's parent is gone.

    python guard.py GRACE_SECONDS COMMAND [ARG ...]      (standard library only; Linux)

Standard input is a pipe whose other end only the parent holds. When it closes, because the parent closed it, ended
or was killed with -9, the command's process group gets SIGTERM, and after at most GRACE_SECONDS everything that
descends from this guard gets SIGKILL. The guard makes itself the "subreaper" of its descendants, so that a worker
whose own parent died still belongs to it. Exit status: the command's, 128 + n when signal n ended it.

vLLM leaves its sockets and rendezvous files in the temporary folder when it is killed. The command therefore gets a
temporary folder of its own, which goes when everything else has gone; only torch's compiler keeps what it made for
the next start. Of a guard that was killed with -9 the next one removes it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
STRAGGLERS = 1.0
"""Seconds; Python's resource tracker, which removes shared memory, needs a few hundredths."""
PREFIX, LOCK = "sqtool-vllm-", "guard.lock"
FORGOTTEN = 3600.0
"""Seconds from which on a folder whose lock nobody holds is no one's: younger ones may be about to be locked."""
LONGEST = 107 - len("/") - 36
"""Bytes that the path of a temporary folder may have: a socket's path ends at 107, and vLLM names its sockets by a
UUID."""


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _descendants() -> list[int]:
    """Process ids of all living processes below this one.

    A zombie is none of them, unless it has threads: where the main thread ended first, the process is shown as a zombie
    while the others go on, and its children are still its own."""
    children: dict[int, list[int]] = {}
    gone = set()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            stat = (folder / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        # The command name may hold spaces and brackets: what follows the last bracket is fixed (see proc(5)).
        words = stat.rpartition(")")[2].split()
        state, parent, threads = words[0], int(words[1]), int(words[17])
        if state == "Z" and threads <= 1:
            gone.add(int(folder.name))
        children.setdefault(parent, []).append(int(folder.name))
    found: list[int] = []
    todo = [os.getpid()]
    while todo:
        below = children.get(todo.pop(), [])
        found += [pid for pid in below if pid not in gone]
        todo += below
    return found


def _reap() -> None:
    """Collect the ends of adopted orphans, so that no zombie stays."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _signal_all(number: int) -> None:
    for pid in _descendants():
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _left() -> list[int]:
    """Descendants, and none only when two looks agree: a process whose parent ends while one look is being taken is
    seen below a parent that is no longer there, and belongs to this guard by the next."""
    return _descendants() or _descendants()


def _end(command: subprocess.Popen[bytes], grace: float) -> None:
    """SIGTERM to the command's group; SIGKILL to what is left after `grace` seconds, or `STRAGGLERS` seconds after
    the command itself ended: what it leaves behind then is forgotten, not busy."""
    with suppress(ProcessLookupError):
        os.killpg(command.pid, signal.SIGTERM)
    deadline = time.monotonic() + grace
    ended = False
    while _left() and time.monotonic() < deadline:
        if not ended and command.poll() is not None:
            ended = True
            deadline = min(deadline, time.monotonic() + STRAGGLERS)
        if ended:
            _reap()
        time.sleep(0.02)
    # A process may start another between the listing and the kill, hence the loop.
    while _left():
        _signal_all(signal.SIGKILL)
        _reap()
        time.sleep(0.02)


def _temporary() -> tuple[str | None, dict[str, str]]:
    """A new temporary folder, and the environment of a command that uses it; (None, the environment as it is) when no
    folder can be made, in which case the command will say better what is wrong."""
    usual = tempfile.gettempdir()
    for place in (usual, "/tmp"):
        with suppress(OSError):
            folder = tempfile.mkdtemp(prefix=PREFIX, dir=place)
            if len(os.fsencode(folder)) <= LONGEST:
                compiled = f"{usual}/torchinductor_{os.getuid()}"
                return folder, {"TORCHINDUCTOR_CACHE_DIR": compiled, **os.environ, "TMPDIR": folder}
            Path(folder).rmdir()
    return None, dict(os.environ)


def _hold(folder: str) -> None:
    """Lock a temporary folder for as long as this process lives; other guards see by it that the folder is in use."""
    with suppress(OSError):
        # Never closed: the lock goes with the process. No child inherits it.
        fcntl.flock(os.open(f"{folder}/{LOCK}", os.O_CREAT | os.O_RDWR, 0o600), fcntl.LOCK_EX)


def _sweep(place: Path) -> None:
    """Remove the folders in `place` of guards that could not do it themselves."""
    locks: list[Path] = []
    with suppress(OSError):  # a folder that may not be looked into is somebody else's, and no reason not to start
        locks = list(place.glob(f"{PREFIX}*/{LOCK}"))
    for lock in locks:
        with suppress(OSError):
            told = lock.lstat()
            if lock.parent.is_symlink() or told.st_uid != os.getuid() or time.time() - told.st_mtime < FORGOTTEN:
                continue
            with lock.open("rb") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)


def main(argv: list[str]) -> int:
    """Run argv[1:] under guard, with argv[0] seconds of grace at the end."""
    grace = float(argv[0])
    parent, guard = os.getppid(), os.getpid()
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    # The guard outlives Ctrl-C and SIGTERM: its parent decides, and its death closes the pipe.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)

    def in_child() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        # Should the guard itself be killed with -9, the server at least ends at once.
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:  # it was killed before it could be waited for
            os._exit(1)

    temporary, environment = _temporary()
    if temporary is not None:
        _hold(temporary)
        _sweep(Path(temporary).parent)
    try:
        return _guarded(argv[1:], grace, parent, environment, in_child)
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _guarded(
    words: list[str], grace: float, parent: int, environment: dict[str, str], in_child: Callable[[], None]
) -> int:
    """Run the command until it ends or `parent` is gone; its exit status."""
    try:
        command = subprocess.Popen(
            words, env=environment, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=in_child
        )
    except OSError as error:
        sys.stderr.write(f"guard: cannot start {words[0]}: {error}\n")
        return 127
    status: int | None = None
    while status is None:
        # getppid is the second sign of the parent's death: a fork of it may still hold the pipe's other end.
        readable = select.select([0], [], [], 0.2)[0]
        if (readable and not os.read(0, 4096)) or os.getppid() != parent:
            break
        status = command.poll()
    _end(command, grace)
    if status is None:
        return 128 + signal.SIGTERM
    return 128 - status if status < 0 else status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
