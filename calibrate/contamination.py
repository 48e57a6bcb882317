"""Does the calibration set know the test? Exact questions and 13 words in a row, on canonical text.

What counts is what was said: the questions, the answers, the arguments of calls. System prompts and the schemas of
tools do not: calibration and test should share those, since both are the same product. Neither does other boilerplate,
which is recognized by being everywhere on both sides: 13 words that stand in more than `BOILERPLATE` of the test items
and in more than that of the conversations (and in three of each at least) are a template's words.

The 13 words are Brown et al., "Language Models are Few-Shot Learners" (2020), appendix C. Questions of fewer words are
caught when the whole question is the same.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from calibrate.conversation import Record, spoken
from calibrate.words import words

N = 13
BOILERPLATE = 0.01
AT_LEAST = 3
SHOWN_WORDS = 13


@dataclass(frozen=True)
class Overlap:
    """A conversation that shares text with a test item."""

    record: int
    """Its place among those that were checked."""
    item: str
    how: str
    """`question` or `13 words`."""
    text: str


class ItemIndex:
    """The canonical text of all test items. `items` are (name to show, record)."""

    def __init__(self, items: Iterable[tuple[str, Record]]) -> None:
        self.names: list[str] = []
        self.questions: dict[str, int] = {}
        self._texts: list[list[str]] = []
        # Hashes, not texts: a test set has tens of grams an item. Hits are checked against the text.
        self._grams: defaultdict[int, list[int]] = defaultdict(list)
        for name, record in items:
            number = len(self.names)
            self.names.append(name)
            texts = [words(text) for text in _said(record)]
            self._texts.append([" ".join(text) for text in texts])
            question = _question(record)
            if question:
                self.questions.setdefault(question, number)
            for gram in {gram for text in texts for gram in _grams(text)}:
                self._grams[hash(gram)].append(number)

    def __len__(self) -> int:
        return len(self.names)

    def holders(self, gram: str) -> list[int]:
        """Items that say these words in a row."""
        return [n for n in self._grams.get(hash(gram), ()) if any(gram in text for text in self._texts[n])]


def overlaps(records: Iterable[Record], tests: ItemIndex) -> list[Overlap]:
    """Every record that shares a question or N words in a row with a test item; one overlap a record."""
    shared: dict[int, list[str]] = {}
    everywhere: Counter[str] = Counter()
    made = []
    count = 0
    for place, record in enumerate(records):
        count += 1
        question = _question(record)
        if question in tests.questions:
            made.append(Overlap(place, tests.names[tests.questions[question]], "question", _cut(question)))
        found = {g for text in _said(record) for g in _grams(words(text)) if tests.holders(g)}
        everywhere.update(found)
        if found and question not in tests.questions:
            shared[place] = sorted(found)
    for place, grams in shared.items():
        for gram in grams:
            holders = tests.holders(gram)
            if not (_common(len(holders), len(tests)) and _common(everywhere[gram], count)):
                made.append(Overlap(place, tests.names[holders[0]], f"{N} words", gram))
                break
    return sorted(made, key=lambda overlap: overlap.record)


def _common(count: int, of: int) -> bool:
    return count >= AT_LEAST and count > BOILERPLATE * of


def _said(record: Record) -> list[str]:
    return spoken(record, "user", "assistant", "tool")


def _question(record: Record) -> str:
    """All that the user says, in canonical words."""
    return " ".join(word for text in spoken(record, "user") for word in words(text)) if "messages" in record else ""


def _grams(text: Sequence[str]) -> Iterator[str]:
    return (" ".join(text[at : at + N]) for at in range(len(text) - N + 1))


def _cut(text: str) -> str:
    return " ".join(text.split()[:SHOWN_WORDS])
