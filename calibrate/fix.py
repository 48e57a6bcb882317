"""`coverage.fix`: add conversations of the sources that have what the set lacks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from calibrate.candidates import Candidates
from calibrate.conversation import NO_KIND
from calibrate.features import Profile
from calibrate.greedy import cover
from calibrate.pool import Entry
from calibrate.text_coverage import gaps, lacking

Gaps = dict[tuple[str, str], list[tuple[frozenset[str], float]]]
"""(dimension, reference) -> what each part of the reference lacks, and the part's share."""


def fillers(
    candidates: Candidates,
    chosen: Sequence[Entry],
    have: Profile,
    references: Mapping[str, Profile],
    report: Mapping[str, Any],
    avoid: Collection[Entry] = (),
) -> list[Entry]:
    """Entries to add: the first ones of each kind and tool that is below the minimum, then greedily until every
    dimension of `report` reaches its threshold, as far as the sources can; none of `avoid`."""
    held = {*chosen, *avoid}
    spare = [entry for entry in candidates.pool.all() if entry not in held]
    too_long = candidates.too_long(spare)
    spare = [entry for entry in spare if entry not in too_long]
    added = _to_the_minimum(spare, report["below_minimum"])
    left: Gaps = {
        (dimension, name): gaps(references[name], dimension, have)
        for dimension, found in lacking(report["text"]).items()
        for name in found["against"]
    }
    if not left:
        return added
    for _, found in candidates.features(added):
        _fill(left, found)
    spare = [entry for entry in spare if entry not in set(added)]
    weights: dict[tuple[str, str], float] = {}
    for (dimension, _), parts in left.items():
        for features, share in parts:
            for feature in features:
                weights[dimension, feature] = weights.get((dimension, feature), 0.0) + share
    order = cover(
        (found for _, found in candidates.features(spare)),
        weights,
        costs=[1] * len(spare),
        budgets=[len(spare)],
        groups=[0] * len(spare),
        value="once",
    )
    for entry, found in candidates.features([spare[place] for place in order]):
        if all(1 - sum(s for _, s in parts) >= report["text"][name]["threshold"] for (name, _), parts in left.items()):
            break
        _fill(left, found)
        added.append(entry)
    return added


def spare(
    candidates: Candidates, held: Collection[Entry], kinds: Sequence[str]
) -> Iterator[tuple[Entry, str, Sequence[int]]]:
    """(entry, kind, token ids) of what the sources have beside `held`: one of each of `kinds` in turn, then one of each
    other kind. Nothing that is left out for its length; rendered as it is asked for."""
    by_kind: dict[str, list[Entry]] = {kind: [] for kind in kinds}
    for entry in candidates.pool.all():
        if entry not in held:
            by_kind.setdefault(entry.kind or NO_KIND, []).append(entry)
    missed, others = [by_kind[kind] for kind in kinds], [of for kind, of in by_kind.items() if kind not in kinds]
    entries = [entry for group in (missed, others) for turn in zip_longest(*group) for entry in turn if entry]
    skipped = candidates.spec.on_too_long == "skip"
    for entry, record, made in candidates.rendered(entries):
        if not (skipped and candidates.beyond(record, made)):
            yield entry, record.get("kind") or NO_KIND, made.ids


def _to_the_minimum(spare: Sequence[Entry], below: Mapping[str, Any]) -> list[Entry]:
    added: dict[Entry, None] = {}
    for short in below["kinds"]:
        of_kind = [entry for entry in spare if entry.kind == short["name"]]
        added.update(dict.fromkeys(of_kind[: short["needed"] - short["samples"]]))
    for short in below["tools"]:
        there = short["samples"] + sum(short["name"] in entry.tools_called for entry in added)
        calling = [entry for entry in spare if short["name"] in entry.tools_called and entry not in added]
        added.update(dict.fromkeys(calling[: max(0, short["needed"] - there)]))
    return list(added)


def _fill(left: Gaps, found: Mapping[str, frozenset[str]]) -> None:
    for (dimension, name), parts in left.items():
        rest = [(features - found[dimension], share) for features, share in parts]
        left[dimension, name] = [(features, share) for features, share in rest if features]
