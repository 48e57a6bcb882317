"""What an engine is: something that answers questions, and says what it is that a measurement binds to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from evals.items import Item
from evals.scorers import Answer
from sqtool.progress import Progress

if TYPE_CHECKING:
    from evals.client import Endpoint
    from evals.spec import EngineSpec, GenerationSpec


@dataclass(frozen=True)
class Question:
    """One answer that is wanted: an item's `sample`-th, drawn with the seed `seed + sample`."""

    item: Item
    sample: int = 0


@dataclass(frozen=True)
class Limits:
    """How hard to press: requests in flight, seconds for one attempt, further attempts of one request. In process
    there are no requests, and none of it has a meaning."""

    concurrency: int
    timeout: float
    retries: int


Done = Callable[[Question, Answer], None]
"""Gets each answer as it comes, in any order; what it raises ends the asking and comes out of it."""


class Engine(Protocol):
    """A context manager; questions are asked inside. An item that could not be asked is an error and never has an
    answer, so it cannot be scored: `DataError` when the item does not fit the model, `EngineError` otherwise."""

    retried: Counter[str]
    """Why attempts failed that were made again, and how often; empty in process."""
    endpoint: Endpoint | None
    """Where the engine is reached over HTTP, inside the context; None in process."""

    def __init__(self, spec: EngineSpec, *, model: Path, out: Path, root: Path, progress: Progress) -> None:
        """`model` is the checkpoint's folder, `out` the folder for logs."""

    def __enter__(self) -> Engine:
        """Ready to answer; `EngineError` with a remedy otherwise."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends what was started."""

    def ask(
        self, questions: Sequence[Question], generation: GenerationSpec, limits: Limits, *, seed: int, done: Done
    ) -> None:
        """Generate an answer to each question; `seed` counts where `generation.seed` is None."""

    def loglikelihoods(
        self,
        questions: Sequence[Question],
        continuations: Callable[[Item], Sequence[str]],
        limits: Limits,
        *,
        done: Done,
    ) -> None:
        """An answer with a `Loglikelihood` (natural logarithm) for each of the item's continuations: of the tokens of
        the continuation alone, after those of the item's prompt with the template's opening of an answer."""

    def facts(self) -> dict[str, Any]:
        """What a verdict binds to, JSON-able. At least engine, version, device_class, dtype, kv_cache_dtype."""

    @staticmethod
    def check(spec: EngineSpec, root: Path) -> None:
        """Raises, before anything is started, what would fail later anyway."""

    @staticmethod
    def fingerprint(spec: EngineSpec, root: Path) -> dict[str, Any]:
        """Versions and device, known without starting anything; part of a stage's digest. Never raises."""
