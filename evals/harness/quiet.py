"""lm-eval and what it uses draw bars, print and log; that goes to a file or nowhere."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path

from evals.quiet import quiet as no_bars

LIBRARIES = ("lm_eval", "datasets", "transformers", "accelerate", "evaluate")


@contextmanager
def quiet(log: Path | None = None) -> Iterator[None]:
    """No bars inside; what is printed or logged is appended to `log`."""
    with ExitStack() as stack:
        stack.enter_context(no_bars())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        handler: logging.Handler = logging.NullHandler()
        if log is not None:
            handle = stack.enter_context(log.open("a", encoding="utf-8"))
            stack.enter_context(redirect_stdout(handle))
            handler = logging.StreamHandler(handle)
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        for name in LIBRARIES:
            stack.enter_context(_to(handler, logging.getLogger(name)))
        yield


@contextmanager
def _to(handler: logging.Handler, logger: logging.Logger) -> Iterator[None]:
    before = logger.handlers, logger.propagate, logger.level
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before[0], before[1]
        logger.setLevel(before[2])
