"""Keeps what a backend's libraries print out of the terminal and in a log file.

llm-compressor logs with loguru to standard output, transformers and compressed-tensors with `logging`, all of them draw
tqdm bars, and some warn. The terminal belongs to our own progress.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

LIBRARIES = ("transformers", "compressed_tensors", "accelerate", "datasets", "huggingface_hub", "torch")


@contextmanager
def quiet(log: Path, on_warning: Callable[[str], None]) -> Iterator[None]:
    """Everything that is logged inside goes to `log`; loguru warnings also go to `on_warning`, one message each."""
    with ExitStack() as stack:
        handle = stack.enter_context(log.open("a", encoding="utf-8"))
        stack.enter_context(_loguru(handle, on_warning))
        stack.enter_context(_logging(handle))
        stack.enter_context(_no_bars())
        stack.enter_context(_warnings(handle))
        yield


@contextmanager
def _loguru(handle: TextIO, on_warning: Callable[[str], None]) -> Iterator[None]:
    with _environment("LLM_COMPRESSOR_LOG_LEVEL", "CRITICAL"):
        # Its import logs already.
        from llmcompressor.logger import LoggerConfig, configure_logger
        from loguru import logger

    # Takes llm-compressor's own sink on standard output away.
    configure_logger(LoggerConfig(console_log_level=None))
    sinks = [
        logger.add(handle, level="DEBUG", format="{time:HH:mm:ss.SSS} {level} {function}: {message}"),
        logger.add(lambda message: on_warning(message.record["message"]), level="WARNING", format="{message}"),
    ]
    try:
        yield
    finally:
        for sink in sinks:
            logger.remove(sink)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def _logging(handle: TextIO) -> Iterator[None]:
    handler = logging.StreamHandler(handle)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))
    before: list[tuple[logging.Logger, list[logging.Handler], bool]] = []
    for name in LIBRARIES:
        library = logging.getLogger(name)
        before.append((library, list(library.handlers), library.propagate))
        library.handlers, library.propagate = [handler], False
    try:
        yield
    finally:
        for library, handlers, propagate in before:
            library.handlers, library.propagate = handlers, propagate


@contextmanager
def _no_bars() -> Iterator[None]:
    # tqdm reads TQDM_DISABLE once, when it is imported, and it often is by now; llm-compressor and compressed-tensors
    # have no switch that reaches all of their bars. So the constructor is wrapped for this block.
    bar: Any = import_module("tqdm.std").tqdm
    original = bar.__init__

    def disabled(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **{**kwargs, "disable": True})

    bar.__init__ = disabled
    try:
        yield
    finally:
        bar.__init__ = original


@contextmanager
def _warnings(handle: TextIO) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("default")

        def show(message: Any, category: Any, filename: str, lineno: int, *_: Any, **__: Any) -> None:
            handle.write(warnings.formatwarning(message, category, filename, lineno))

        setattr(warnings, "showwarning", show)  # noqa: B010 - typeshed spells out parameters that we do not use
        yield
