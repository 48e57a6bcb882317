"""What our lm-eval models have in common: they report progress, and keep the counts that records need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from evals.scorers import Answer
from sqtool.progress import SILENT, Progress, Task

T = TypeVar("T")
Pair = tuple[str, str]


@dataclass
class Ledger:
    """What lm-eval's samples of one task do not say."""

    progress: Progress = SILENT
    answers: dict[int, list[Answer]] = field(default_factory=dict)
    """doc_id -> the answers generated to it, in the order in which they were asked for."""
    tokens: dict[Pair, tuple[int, int]] = field(default_factory=dict)
    """(context, continuation) -> the number of tokens of each."""
    shortened: int = 0
    """Prompts that were longer than the model's context, and that lm-eval's rule cut from the left."""

    def clear(self) -> None:
        """Forget a finished task's answers."""
        self.answers.clear()
        self.tokens.clear()
        self.shortened = 0

    def following(self, model: Any, requests: Sequence[Any], call: Callable[[], T]) -> T:
        """`call()`, which answers `requests`, with a bar; lm-eval's models tell their cache of every answer."""
        names = dict.fromkeys(str(request.task_name) for request in requests)
        with self.progress.task(f"evaluate: {', '.join(names)}", total=len(requests)) as bar:
            before = model.cache_hook
            model.set_cache_hook(_Bar(bar))
            try:
                return call()
            finally:
                model.set_cache_hook(before)


class _Bar:
    """Stands where lm-eval's models expect their cache."""

    def __init__(self, bar: Task) -> None:
        self.bar = bar

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        self.bar.advance()
