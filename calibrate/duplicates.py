"""Near-duplicates among what is considered: word shingles, MinHash, locality-sensitive hashing (datasketch).

Broder, "On the resemblance and containment of documents" (1997); Leskovec, Rajaraman, Ullman, "Mining of Massive
Datasets", chapter 3.
"""

from __future__ import annotations

from collections.abc import Iterable

from calibrate.conversation import Record, spoken, tools_called
from calibrate.words import words

SHINGLE = 3
PERMUTATIONS = 128


def near_duplicates(records: Iterable[Record], threshold: float) -> list[int]:
    """Places of the records whose Jaccard similarity with an earlier one that stays is estimated at `threshold` or
    more, over the sets of three words in a row of what is said, and of tools called. (Tools' schemas do not count:
    boilerplate that all share would make everything alike.)"""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS) if threshold < 1 else None
    kept: dict[int, MinHash] = {}
    whole: set[frozenset[bytes]] = set()
    found = []
    for place, record in enumerate(records):
        shingles = _shingles(record)
        if index is None:
            if shingles in whole:
                found.append(place)
            whole.add(shingles)
            continue
        sketch = MinHash(num_perm=PERMUTATIONS)
        sketch.update_batch(sorted(shingles))
        # Locality-sensitive hashing proposes; the sketches decide.
        if any(kept[other].jaccard(sketch) >= threshold for other in index.query(sketch)):
            found.append(place)
            continue
        kept[place] = sketch
        index.insert(place, sketch)
    return found


def _shingles(record: Record) -> frozenset[bytes]:
    made = {f"tool:{name}".encode() for name in tools_called(record)}
    for text in spoken(record):
        said = words(text)
        made |= {" ".join(said[at : at + SHINGLE]).encode() for at in range(max(1, len(said) - SHINGLE + 1))}
    return frozenset(made)
