"""Parts of drift: they cover what they should, and there is never an unlimited number."""

from __future__ import annotations

from evals.slices import MOST_FIELDS, MOST_VALUES, OTHER, Part, Span, by_kind, slices, tabulate
from evals.texts import script


def spans(lengths: list[int], **fields: list[str]) -> list[Span]:
    found = []
    start = 0
    for at, length in enumerate(lengths):
        own = {name: values[at] for name, values in fields.items() if values[at]}
        found.append(Span(f"t{at}", "ab"[at % 2], start, start + min(10, length), start + length, own))
        start += length
    return found


def size(part: Part, which: int = 0) -> int:
    return sum(stop - start for start, stop in part[which])


def test_every_position_is_in_one_bin_of_positions_and_one_of_lengths() -> None:
    some = spans([5, 16, 17, 300, 70_000])
    total = sum(span.stop - span.start for span in some)
    found = dict(slices(some))
    assert list(found["position"]) == [
        "0-15", "16-63", "64-255", "256-1023", "1024-4095", "4096-16383", "16384-65535", "65536+"
    ]  # fmt: skip
    assert sum(size(part) for part in found["position"].values()) == total
    assert size(found["position"]["0-15"]) == 5 + 4 * 16
    assert size(found["position"]["0-15"], 1) == 0 + 4 * 6, "answers begin at the tenth position here"
    assert size(found["position"]["16-63"]) == 1 + 48 + 48
    assert sum(size(part) for part in found["prompt_tokens"].values()) == total
    assert {kind: size(part) for kind, part in by_kind(some).items()} == {"a": 5 + 17 + 70_000, "b": 316}


def test_fields_with_one_value_or_none_are_no_dimension() -> None:
    some = spans([20] * 4, language=["de", "en", "", "en"], script=["latin"] * 4)
    found = dict(slices(some))
    assert set(found) == {"prompt_tokens", "position", "language"}
    assert {value: size(part) for value, part in found["language"].items()} == {"de": 20, "en": 40}


def test_the_number_of_slices_is_bounded() -> None:
    many = 400
    fields = {f"f{n}": [str(at % 2) for at in range(many)] for n in range(40)}
    fields["number"] = [str(at) for at in range(many)]
    fields["name"] = [f"n{max(0, at - 200)}" for at in range(many)]
    found = dict(slices(spans([20] * many, **fields)))
    assert len(found) <= MOST_FIELDS + 2
    only = dict(slices(spans([20] * many, number=fields["number"], name=fields["name"])))
    assert list(only["number"]) == ["0 to 99", "100 to 199", "200 to 299", "300 to 399"]
    assert len(only["name"]) == MOST_VALUES
    assert size(only["name"]["n0"]) == 201 * 20
    assert sum(size(part) for part in only["name"].values()) == many * 20
    assert OTHER in only["name"]


def test_tabulate_gives_both_sides() -> None:
    parts = by_kind(spans([20, 30]))
    found = tabulate(parts, lambda ranges: {"n": sum(b - a for a, b in ranges)})
    assert found == {"a": {"all": {"n": 20}, "answers": {"n": 10}}, "b": {"all": {"n": 30}, "answers": {"n": 20}}}


def test_scripts() -> None:
    assert script("Hello, wörld 123") == "latin"
    assert script("Привет, world") == "cyrillic"
    assert script("東京 is") == "cjk"
    assert script("12 + 3") == "none"
