"""The pool's entries as the model would see them: rendered once each, with errors that name file and line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from calibrate.conversation import Record
from calibrate.features import Features, Profile, features, special_tokens
from calibrate.pool import Entry, Pool
from calibrate.render import Rendered, render_cut
from calibrate.spec import CalibrateSpec
from sqtool.errors import DataError

BATCH = 256
"""Records that are read from the pool's file at once."""


@dataclass
class Candidates:
    """A pool with what is needed to look at it in tokens. `context`: the model's, in tokens, None when unknown."""

    spec: CalibrateSpec
    pool: Pool
    tokenizer: Any
    context: int | None
    _lengths: dict[Entry, int] = field(default_factory=dict)

    def rendered(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, Record, Rendered]]:
        """Each entry with its record and its tokens, in order, a batch at a time.

        Raises DataError with file and line when the template fails or drops the tools, when it renders to nothing, and
        when a conversation is longer than the model's context and the spec makes that an error.
        """
        masked = self.spec.loss_mask == "assistant"
        for start in range(0, len(entries), BATCH):
            batch = entries[start : start + BATCH]
            for entry, record in zip(batch, self.pool.read(batch), strict=True):
                try:
                    made = render_cut(self.tokenizer, record, self.spec.max_seq_length, masked=masked)
                except ValueError as error:
                    raise DataError(entry.path, str(error), line=entry.line, field="messages") from error
                if not made.ids:
                    raise DataError(
                        entry.path, "the chat template renders it to nothing", line=entry.line, field="messages"
                    )
                if self.spec.on_too_long == "error" and self.beyond(record, made):
                    raise DataError(
                        entry.path,
                        f"{made.whole} tokens, and the model's context is {self.context}",
                        line=entry.line,
                        field="messages",
                        remedy="calibrate.on_too_long: skip leaves such conversations out, truncate cuts them.",
                    )
                self._lengths[entry] = len(made.ids)
                yield entry, record, made

    def beyond(self, record: Record, made: Rendered) -> bool:
        """Is it longer than the model's context? (A plain document is cut wherever, so it never is.)"""
        return self.context is not None and made.whole > self.context and "messages" in record

    def too_long(self, entries: Sequence[Entry]) -> set[Entry]:
        """Entries to leave out for their length."""
        if self.spec.on_too_long != "skip" or self.context is None:
            return set()
        return {entry for entry, record, made in self.rendered(entries) if self.beyond(record, made)}

    def length(self, entries: Sequence[Entry]) -> int:
        """Tokens that the entries keep, in all."""
        unknown = [entry for entry in entries if entry not in self._lengths]
        for _ in self.rendered(unknown):
            pass
        return sum(self._lengths[entry] for entry in entries)

    def costs(self, entries: Sequence[Entry]) -> list[int]:
        """Tokens that each entry keeps."""
        self.length(entries)
        return [self._lengths[entry] for entry in entries]

    def features(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, Features]]:
        """The features of each entry, as it will be cut."""
        special = special_tokens(self.tokenizer)
        for entry, record, made in self.rendered(entries):
            yield entry, features(record, made, special)

    def profile(self, entries: Sequence[Entry]) -> Profile:
        """What the entries have in all."""
        return profile(self.tokenizer, ((record, made) for _, record, made in self.rendered(entries)))


def profile(tokenizer: Any, conversations: Iterable[tuple[Record, Rendered]]) -> Profile:
    """What some conversations have in all."""
    special = special_tokens(tokenizer)
    made = Profile()
    for record, rendered in conversations:
        made.add(features(record, rendered, special), rendered)
    return made
