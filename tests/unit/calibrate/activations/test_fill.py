"""What each conversation of a batch reaches, and which ones are picked for what is missing."""

from __future__ import annotations

from typing import Any

import pytest

from calibrate.activations.spec import ActivationsSpec
from calibrate.activations.traffic import Sample

from .conftest import MOES, moe, samples


def one(model: Any, sample: Sample) -> Any:
    """What calibration with this conversation alone would see."""
    from calibrate.activations.measure import observe

    return observe(model, [sample], [])


@pytest.mark.parametrize("name", ["llama", *MOES])
def test_what_each_conversation_of_a_batch_reaches(name: str, llama: Any) -> None:
    import torch

    from calibrate.activations.fill import Reach
    from calibrate.activations.measure import run_batch

    model = llama if name == "llama" else moe(name)
    group = samples(4, seed=1, high=259)
    reach = Reach(len(group))
    with reach.on(model):
        run_batch(model, group, (), reach)
    seen = 0
    for number, sample in enumerate(group):
        alone = one(model, sample)
        for kind in ("ranges", "keys", "values"):
            for key, found in getattr(reach, kind).items():
                if found.maximum is None:
                    continue  # one expert's own tokens: nobody knows whose they are
                own = getattr(alone, kind)[key].maximum
                torch.testing.assert_close(found.maximum[number], own, rtol=1e-3, atol=1e-4)
                seen += 1
        for key, routing in alone.routing.items():
            assert reach.routing[key].calibration[number].tolist() == routing.calibration.tolist()
            seen += 1
    assert seen >= 4 * 6


def test_picks_bring_most_first_and_stop_at_the_traffic(llama: Any) -> None:
    from calibrate.activations.fill import Search, missing
    from calibrate.activations.measure import observe

    spec = ActivationsSpec(max_beyond_channel=0.0, max_saturated=0.0)
    low, high = samples(6, seed=2, high=60), samples(12, seed=3, low=150, kind="high")
    chosen, traffic = low, [*low, *high[:6]]
    spare = list(enumerate([*samples(5, seed=4, high=60), *high]))
    lacks = missing(observe(llama, chosen, traffic), spec)
    search = Search(llama, lacks, spare, tokens=10_000, batch_tokens=256)
    first = search.pick(lacks)
    assert first
    assert {sample.kind for _, sample in first} == {"high"}, "what calibration has already brings nothing"
    after = missing(observe(llama, [*chosen, *(sample for _, sample in first)], traffic), spec)

    def short(parts: Any) -> float:
        return float(sum((part.want - part.have).clamp(min=0).sum() for part in parts.values()))

    assert short(after) < 0.1 * short(lacks)
    again = search.pick(after)
    assert not {key for key, _ in again} & {key for key, _ in first}
    assert search.pick({}) == []


def test_tokens_of_an_expert_add_up() -> None:
    from calibrate.activations.fill import Search, missing
    from calibrate.activations.measure import observe

    model = moe("mixtral")
    spare = samples(30, seed=5)
    watch = observe(model, spare[:1], [])
    need = int(max(routing.calibration.max() for routing in watch.routing.values())) + 20
    lacks = missing(watch, ActivationsSpec(min_tokens_per_expert=need))
    assert lacks
    search = Search(model, lacks, list(enumerate(spare[1:])), tokens=10_000, batch_tokens=256)
    picked = [sample for _, sample in search.pick(lacks)]
    assert len(picked) > 1
    assert missing(observe(model, [spare[0], *picked], []), ActivationsSpec(min_tokens_per_expert=need)) == {}


def test_no_more_than_asked_for_is_looked_at(llama: Any) -> None:
    from calibrate.activations.fill import Search, missing
    from calibrate.activations.measure import observe

    spec = ActivationsSpec(max_beyond_channel=0.0)
    lacks = missing(observe(llama, samples(1, seed=2, high=60), samples(4, seed=3)), spec)
    assert len(Search(llama, lacks, enumerate(samples(99, seed=6)), tokens=100, batch_tokens=64).conversations) < 10
    assert Search(llama, {}, enumerate(samples(9, seed=6)), tokens=100, batch_tokens=64).pick({}) == []


def test_a_conversation_that_overflows_the_model_is_never_picked(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from calibrate.activations import fill
    from calibrate.activations.measure import observe

    spare = list(enumerate(samples(6, seed=3, low=150)))
    lacks = fill.missing(
        observe(llama, samples(2, seed=2, high=60), [s for _, s in spare]), ActivationsSpec(max_beyond_channel=0.0)
    )
    read = fill.Search._read

    def overflowing(self: Any, parts: Any, reach: Any) -> Any:
        found = read(self, parts, reach)
        found[0, 0] = torch.nan
        return found

    monkeypatch.setattr(fill.Search, "_read", overflowing)
    search = fill.Search(llama, lacks, spare, tokens=10_000, batch_tokens=10_000)
    broken = {at for at, row in enumerate(search.reached) if not row.any()}
    assert broken
    assert not {key for key, _ in search.pick(lacks)} & broken


def test_an_expert_that_never_gets_a_token_is_left_out() -> None:
    import torch

    from calibrate.activations.measure import figures
    from calibrate.activations.watch import Range, Watch

    watch = Watch(0, ranges={"idle": Range(["idle"]), "busy": Range(["busy"], torch.ones(4))})
    found = figures(watch, [], [])
    assert [row["name"] for row in found["layers"]] == ["busy"]
