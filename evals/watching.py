"""Somebody looks at the records while they come in, and may say that enough is known.

The evaluation knows nothing of how that is decided. It asks the items in the order that it is told, hands over the
records batch by batch in that order, and keeps exactly those that had been handed over when the answer was to stop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from evals.items import Item
from evals.scorers import Answer

Decision = Literal["go_on", "task", "all"]


class Watch(Protocol):
    """What `evaluate` needs of it."""

    @property
    def every(self) -> int:
        """Look after each so many items (more, where a cluster would be cut in two)."""

    @property
    def why(self) -> Mapping[str, Any]:
        """What stopped the evaluation, JSON-able; empty as long as nothing has."""

    def order(self, task: str, ids: Sequence[str]) -> list[int]:
        """Places in `ids`, in the order in which they are to be asked; items of a cluster are adjacent."""

    def look(self, task: str, new: Sequence[Mapping[str, Any]]) -> Decision:
        """Whether to go on after these further records: yes, not with this task, or not at all."""


class EnoughError(Exception):
    """Ends the asking; no error of anybody's."""


class Follower:
    """Follows one task's answers, which come in any order, in the order in which they were asked for."""

    def __init__(
        self,
        watch: Watch,
        task: str,
        items: Sequence[Item],
        record: Callable[[Item, Sequence[Answer]], Mapping[str, Any]],
    ) -> None:
        self.watch, self.task, self.record = watch, task, record
        self.items = [items[place] for place in watch.order(task, [item.id for item in items])]
        self.decision: Decision = "go_on"
        self.shown = 0
        self._answered = 0

    def after(self, answers: Mapping[str, Sequence[Answer]]) -> None:
        """Look if a batch is complete; raises `EnoughError` when that was enough. `answers` has, by id, the items of
        which every answer is there. Answers that still come in before the asking has ended change nothing."""
        if self.decision != "go_on":
            return
        while self._answered < len(self.items) and self.items[self._answered].id in answers:
            self._answered += 1
        # The last item needs no look: then everything is there, and the gate decides. But that all answers happen to be
        # there (an interrupted attempt left them) skips no look: where it ends must not depend on when answers came.
        while (end := self._whole(self.shown + self.watch.every)) <= self._answered and end < len(self.items):
            new = [self.record(item, answers[item.id]) for item in self.items[self.shown : end]]
            self.shown = end
            self.decision = self.watch.look(self.task, new)
            if self.decision != "go_on":
                raise EnoughError

    def _whole(self, end: int) -> int:
        """The first place from `end` on where a cluster ends."""
        end = min(end, len(self.items))
        while 0 < end < len(self.items):
            cluster = self.items[end].cluster
            if cluster is None or cluster != self.items[end - 1].cluster:
                break
            end += 1
        return end
