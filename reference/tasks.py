"""Exact-match tasks, templated prose and the closed-book world, each a function `(rng, names, split) -> Record`."""

from __future__ import annotations

import datetime
import random

from reference.records import Record, split_of
from reference.words import ADJECTIVES, PEOPLE, PROSE_VERBS, THINGS, TIMES, random_word


def _one(kind: str, question: str, answer: str, **fields: object) -> Record:
    return Record(kind, [{"role": "user", "content": question}], text=answer, fields=dict(fields))


def _words(rng: random.Random, names: list[str], n: int) -> list[str]:
    return [rng.choice(names) if rng.random() < 0.3 else random_word(rng) for _ in range(n)]


def lookup(rng: random.Random, names: list[str], entries: int) -> Record:
    """A table in the prompt, one key asked for."""
    keys: dict[str, str] = {}
    while len(keys) < entries:
        keys[rng.choice(names) if rng.random() < 0.3 else random_word(rng)] = (
            str(rng.randint(10, 9999)) if rng.random() < 0.5 else random_word(rng)
        )
    wanted = rng.choice(list(keys))
    table = "\n".join(f"{k}: {v}" for k, v in keys.items())
    question = rng.choice((f"{table}\nWhat is the value of {wanted}?", f"Which value has {wanted}?\n{table}"))
    return _one("lookup", question, keys[wanted], entries=entries)


def arithmetic(rng: random.Random, names: list[str]) -> Record:
    """Sums and differences of up to three digits, products with one digit."""
    op = rng.choice("++--*")
    if op == "*":
        a, b = rng.randint(2, 99), rng.randint(2, 9)
    else:
        a, b = rng.randint(1, 999), rng.randint(1, 999)
        if op == "-" and b > a:
            a, b = b, a
    result = {"+": a + b, "-": a - b, "*": a * b}[op]
    return _one("arithmetic", rng.choice((f"What is {a} {op} {b}?", f"Compute {a} {op} {b}.")), str(result), op=op)


def sorting(rng: random.Random, names: list[str]) -> Record:
    """Numbers ascending or descending, or names in alphabetical order."""
    n = rng.randint(3, 6)
    if rng.random() < 0.6:
        values = rng.sample(range(1, 1000), n)
        down = rng.random() < 0.5
        answer = ", ".join(map(str, sorted(values, reverse=down)))
        order = "descending" if down else "ascending"
        return _one("sorting", f"Sort {order}: {', '.join(map(str, values))}", answer, n=n)
    words = rng.sample(names, n)
    return _one("sorting", f"Sort by name: {', '.join(words)}", ", ".join(sorted(words)), n=n)


def string_edit(rng: random.Random, names: list[str]) -> Record:
    """Word-level edits of a short list."""
    words = _words(rng, names, rng.randint(3, 7))
    while len(set(words)) < len(words):
        words = _words(rng, names, rng.randint(3, 7))
    line = " ".join(words)
    edit = rng.randrange(6)
    if edit == 0:
        old, new = rng.choice(words), random_word(rng)
        return _one("string_edit", f"Replace {old} by {new}: {line}", " ".join(new if w == old else w for w in words))
    if edit == 1:
        gone = rng.choice(words)
        return _one("string_edit", f"Remove {gone}: {line}", " ".join(w for w in words if w != gone))
    if edit == 2:
        return _one("string_edit", f"Reverse the order: {line}", " ".join(reversed(words)))
    if edit == 3:
        swapped = [words[-1], *words[1:-1], words[0]]
        return _one("string_edit", f"Swap the first and the last: {line}", " ".join(swapped))
    if edit == 4:
        return _one("string_edit", f"Join with commas: {line}", ", ".join(words))
    return _one("string_edit", f"Put it in quotes, word by word: {line}", " ".join(f'"{w}"' for w in words))


def date(rng: random.Random, names: list[str]) -> Record:
    """Days added to or taken from a date; month ends and leap years are what makes it hard."""
    start = datetime.date(rng.randint(2020, 2039), 1, 1) + datetime.timedelta(days=rng.randrange(365))
    days = rng.randint(1, 31)
    back = rng.random() < 0.5
    end = start + datetime.timedelta(days=-days if back else days)
    question = f"What date is {days} days {'before' if back else 'after'} {start.isoformat()}?"
    return _one("date", question, end.isoformat())


def prose(rng: random.Random, names: list[str]) -> Record:
    """A few sentences about a place: little to know, several ways to say it."""
    thing, name = rng.choice(THINGS), rng.choice(names)
    sentences = []
    for _ in range(rng.randint(3, 7)):
        person, verb, other = rng.choice(PEOPLE), rng.choice(PROSE_VERBS), rng.choice(THINGS)
        adj, adj2, time = rng.choice(ADJECTIVES), rng.choice(ADJECTIVES), rng.choice(TIMES)
        sentences.append(
            rng.choice((
                f"The {person} of {name} {verb} the {adj} {other} {time}.",
                f"{time.capitalize()}, the {adj} {thing} is {adj2}.",
                f"A {person} {verb} the {thing}, and the {other} is {adj}.",
                f"The {thing} is {adj} but the {other} is {adj2}.",
            ))
        )  # fmt: skip
    question = rng.choice((f"Tell me about the {thing} of {name}.", f"Describe the {thing} of {name}."))
    return Record("prose", [{"role": "user", "content": question}], text=" ".join(sentences), prose=True)


MAKERS = {
    "lookup": lambda rng, names: lookup(rng, names, rng.randint(3, 12)),
    "long_lookup": lambda rng, names: _long(lookup(rng, names, rng.randint(40, 110))),
    "arithmetic": arithmetic,
    "sorting": sorting,
    "string_edit": string_edit,
    "date": date,
    "prose": prose,
}


def _long(record: Record) -> Record:
    record.kind = "long_lookup"
    return record


def make(rng: random.Random, kind: str, names: list[str], split: str = "train") -> Record:
    """One record of `kind` whose question belongs to `split`."""
    while True:
        record = MAKERS[kind](rng, names)
        if split_of(kind, record.messages[-1]["content"]) == split:
            return record
