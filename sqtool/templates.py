"""Chat templates come with a model, and are programs. What they may take: so much time, memory and text.

Jinja's sandbox (transformers compiles chat templates in one) keeps a template away from Python's insides, not from the
machine: two nested loops over `range` run for hours, and a text doubled forty times fills any memory.
"""

from __future__ import annotations

import ctypes
import re
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqtool.errors import DataError

LONGEST = 512 * 1024
"""Characters of a template; the longest real ones have some 20,000."""
SECONDS = 10.0
"""For one conversation; a real template takes milliseconds."""
MORE_BYTES = 2 << 30
"""Address space that may be added while a template runs."""
REMEDY = "Read the chat template; if it is hostile, do not use this model. Else replace it by one that you wrote."
FAILURES = (ArithmeticError, LookupError, AttributeError, TypeError, ValueError)
"""What a template raises that is wrong for its input, besides jinja2.TemplateError."""
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
"""A block that transformers adds to Jinja; our look at the syntax does without it."""
_PAGE = resource.getpagesize()
_limit_lock = threading.Lock()


class _TimeOutError(BaseException):
    """Raised inside the template; no `except Exception` on the way may catch it."""


def check_template(model: Path, template: Any) -> None:
    """Raises DataError for a chat template that is too long, is no template, or raises to powers: a huge power is one
    step inside Python, which no time limit can stop. `template` is a text, or several by name."""
    from jinja2 import TemplateError, nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    texts = template.values() if isinstance(template, dict) else [template]
    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    for text in texts:
        if not isinstance(text, str):
            raise DataError(model, "its chat template is no text", remedy=REMEDY)
        if len(text) > LONGEST:
            raise DataError(model, f"its chat template has {len(text)} characters, more than {LONGEST}", remedy=REMEDY)
        try:
            tree = environment.parse(_GENERATION.sub("", text))
        except (TemplateError, ValueError, RecursionError, ArithmeticError, MemoryError) as error:
            told = " ".join(str(error).split()) or type(error).__name__
            raise DataError(model, f"its chat template cannot be read: {told}", remedy=REMEDY) from None
        if next(iter(tree.find_all(nodes.Pow)), None) is not None:
            raise DataError(model, "its chat template raises numbers to powers (**)", remedy=REMEDY)


@contextmanager
def limited(where: Path | str, seconds: float = SECONDS, more_bytes: int = MORE_BYTES) -> Iterator[None]:
    """Run a template's rendering inside. Raises DataError about `where` when it takes too long, too much memory, or
    calls itself without end; what a template raises itself (jinja2.TemplateError and FAILURES) comes out as it is.

    Works in any thread: the time limit is an exception that Python raises in this thread between two steps. The memory
    limit is the process's address space, put back at the end; it counts in one thread at a time.
    """
    thread = threading.get_ident()
    lock = threading.Lock()
    over = False

    def stop() -> None:
        with lock:
            if not over:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_TimeOutError))

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    try:
        timer.start()
        with _memory(more_bytes):
            try:
                yield
            finally:
                timer.cancel()
                with lock:
                    over = True
    except _TimeOutError:
        raise DataError(where, f"its template did not end within {seconds:g} s", remedy=REMEDY) from None
    except (MemoryError, OverflowError):
        raise DataError(where, "its template makes a text that is too large for the memory", remedy=REMEDY) from None
    except RecursionError:
        raise DataError(where, "its template calls itself without end", remedy=REMEDY) from None


@contextmanager
def _memory(more: int) -> Iterator[None]:
    if not _limit_lock.acquire(blocking=False):  # another thread has set it
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    try:
        _limit_memory(more, before)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        _limit_lock.release()


def _limit_memory(more: int, before: tuple[int, int]) -> None:
    try:
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * _PAGE
    except OSError:  # no /proc: the time limit alone
        return
    known = [value for value in before if value != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([used + more, *known]), before[1]))
