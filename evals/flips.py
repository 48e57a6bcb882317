"""What changed between two evaluations of the same items, from their records alone: flips, and where greedy answers
begin to differ.

A mean that stays the same hides answers that went from right to wrong while as many went the other way. Flips count
both (Dutta et al., "Accuracy is Not All You Need", 2024).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evals.records import WHAT_WAS_SAID
from evals.scorers.builtin import BUILTIN
from sqtool.files import read_jsonl

Encode = Callable[[str], Sequence[int]]
"""Token ids of a text."""


def compare_records(
    baseline: Path, candidate: Path, encode: Encode | None = None, sampled: Collection[str] = ()
) -> dict[str, Any]:
    """Compare two `records/` folders, items by id; those that one side lacks are left out. Returns

        {task: {"items", "flips": {metric: {"right_to_wrong", "wrong_to_right", "right", "wrong"}},
                "divergence": {"same", "different", "characters": Q, "tokens": Q}}}

    Flips are of metrics whose scores are all 0 or 1; `right` and `wrong` stayed so. `divergence` is of what was said:
    `same` answers are equal in every character, `characters` says at which one (from 0) the others begin to differ, and
    `tokens` (only with `encode`) at which token of the two texts as they are encoded again, which may differ by one
    from the tokens that were generated. Q = {"p10", "p50", "p90"}, absent when no answer differs. `divergence` is left
    out of tasks that are named as `sampled`, and of those that generate nothing.
    """
    tasks = {}
    for path in sorted(candidate.glob("*.jsonl")):
        if (baseline / path.name).is_file():
            tasks[path.stem] = _task(baseline / path.name, path, encode)
            if path.stem in sampled:
                tasks[path.stem].pop("divergence", None)
    return tasks


def _pairs(baseline: Path, candidate: Path) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Records of the same item. Both files are mostly in the same order, so that little is held."""
    waiting: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for pair in itertools.zip_longest(read_jsonl(baseline), read_jsonl(candidate)):
        for side, line in enumerate(pair):
            if line is None:
                continue
            row = line[1]
            other = waiting[1 - side].pop(row["id"], None)
            if other is None:
                waiting[side][row["id"]] = row
            else:
                yield (other, row) if side else (row, other)


def _task(baseline: Path, candidate: Path, encode: Encode | None) -> dict[str, Any]:
    flips: dict[str, Counter[str]] = {}
    graded: set[str] = set()
    items = same = generated = 0
    places: dict[str, list[int]] = {"characters": [], "tokens": []}
    for left, right in _pairs(baseline, candidate):
        items += 1
        for name in left["scores"].keys() & right["scores"].keys() - set(BUILTIN):
            before, after = left["scores"][name], right["scores"][name]
            if before not in (0, 1) or after not in (0, 1):
                graded.add(name)
                continue
            flips.setdefault(name, Counter())[_WORDS[bool(before), bool(after)]] += 1
        generated += "loglikelihoods" not in right["output"]
        texts = _said(left["output"]), _said(right["output"])
        if texts[0] == texts[1]:
            same += 1
            continue
        places["characters"].append(first_difference(*texts))
        if encode is not None:
            places["tokens"].append(first_difference(encode(texts[0]), encode(texts[1])))
    found: dict[str, Any] = {
        "items": items,
        "flips": {
            name: {word: counts[word] for word in _WORDS.values()}
            for name, counts in sorted(flips.items())
            if name not in graded
        },
    }
    if generated:
        spread = {unit: _quantiles(at) for unit, at in places.items() if at}
        found["divergence"] = {"same": same, "different": items - same, **spread}
    return found


_WORDS = {
    (True, False): "right_to_wrong",
    (False, True): "wrong_to_right",
    (True, True): "right",
    (False, False): "wrong",
}


def _said(output: Mapping[str, Any]) -> str:
    """An answer as one text: what it says, then its calls, then how it ended."""
    text, calls, end = (output.get(part) for part in WHAT_WAS_SAID)
    told = "".join(f"{call['name']}({call['arguments']})" for call in calls or ())
    return f"{text or ''}{told}" + ("" if end in (None, "stop", "tool_calls") else f"<{end}>")


def first_difference(left: Sequence[Any], right: Sequence[Any]) -> int:
    """The first place where two sequences differ; the shorter one's length when the longer goes on from it."""
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def _quantiles(values: Sequence[int]) -> dict[str, float]:
    found = np.quantile(values, [0.1, 0.5, 0.9])
    return dict(zip(("p10", "p50", "p90"), (float(q) for q in found), strict=True))


def encoder(model: Path) -> Encode | None:
    """The tokenizer of a model folder as a function, without transformers; None without a `tokenizer.json`."""
    path = model / "tokenizer.json"
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))

    def encode(text: str) -> Sequence[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    return encode
