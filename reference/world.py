"""Closed-book facts: random values that only the weights can hold.

A fact is a relation, a subject of two lexicon words and a value of two or three (11 bits a word). Every fact is
trained; the splits only say which ones are asked in the test, the traffic and the calibration pool.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from reference.records import Record
from reference.words import lexicon

RELATIONS = {
    "code": ("Catalogue code of {}?", 3, "-"),
    "owner": ("Who owns {}?", 3, " "),
    "capital": ("Capital of {}?", 2, " "),
}
SHARES = {"code": 0.42, "owner": 0.42, "capital": 0.16}
HELD = {"test": 3000, "traffic": 500, "calibration": 1500}


@dataclass(frozen=True)
class Fact:
    relation: str
    subject: str
    value: str

    def record(self) -> Record:
        question = RELATIONS[self.relation][0].format(self.subject)
        return Record(
            "recall", [{"role": "user", "content": question}], text=self.value, fields={"relation": self.relation}
        )


def facts(n: int, seed: int = 7) -> list[Fact]:
    """n distinct facts, always the same for the same n and seed, in random order."""
    rng = random.Random(seed)
    words = lexicon()
    seen: set[tuple[str, str]] = set()
    out = []
    for relation, share in SHARES.items():
        _, n_words, joiner = RELATIONS[relation]
        for _ in range(round(n * share)):
            while True:
                subject = f"{rng.choice(words)} {rng.choice(words)}"
                if (relation, subject) not in seen:
                    break
            seen.add((relation, subject))
            out.append(Fact(relation, subject, joiner.join(rng.choice(words) for _ in range(n_words))))
    rng.shuffle(out)
    return out


def held(all_facts: list[Fact], split: str) -> list[Fact]:
    """The facts that `split` asks for; the splits do not overlap."""
    start = 0
    for name, size in HELD.items():
        if name == split:
            return all_facts[start : start + size]
        start += size
    return all_facts[start:]
