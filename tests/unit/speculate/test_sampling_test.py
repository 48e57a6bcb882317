"""The two-sample test: its size under no difference, its power under a planted one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from sqtool.speculate.missing import Missing
from sqtool.speculate.reading import Drawn, read_stage
from sqtool.speculate.sampling_test import sampling, two_sample, words
from tests.unit.speculate.synthetic import Settings, write_stage

Prompts = list[list[tuple[str, ...]]]


def answers(rng: np.random.Generator, chances: Sequence[Sequence[float]], samples: int, tail: int = 0) -> Prompts:
    """`chances[i]`: of each first word at prompt i; `tail` random words follow, so that no two answers are equal."""
    return [
        [
            (f"w{rng.choice(len(chance), p=chance)}", *(str(n) for n in rng.integers(0, 50, tail)))
            for _ in range(samples)
        ]
        for chance in chances
    ]


@pytest.mark.parametrize("tail", [0, 3])
def test_the_size_is_what_it_says(tail: int) -> None:
    rng = np.random.default_rng(tail)
    chances = rng.dirichlet(np.full(4, 0.6), size=8)
    runs = 400
    values = np.array(
        [
            two_sample(answers(rng, chances, 4, tail), answers(rng, chances, 4, tail), seed=i, permutations=199)[0]
            for i in range(runs)
        ]
    )
    for level in (0.05, 0.2):
        # Never more often than the level, but for the error of 400 runs; the test is exact, ties make it careful.
        assert (values <= level).sum() <= binom.ppf(0.999, runs, level)
    assert (values <= 0.2).sum() >= 0.1 * runs, "and it is not blind"


@pytest.mark.parametrize("tail", [0, 6])
def test_a_planted_difference_is_found(tail: int) -> None:
    rng = np.random.default_rng(10 + tail)
    found = 0
    for run in range(40):
        before = answers(rng, [(0.5, 0.5)] * 24, 6, tail)
        after = answers(rng, [(0.85, 0.15)] * 24, 6, tail)
        found += two_sample(before, after, seed=run, permutations=499)[0] <= 0.01
    assert found >= 36


def test_differences_of_one_direction_per_prompt_are_found_too() -> None:
    rng = np.random.default_rng(3)
    one = answers(rng, [(0.9, 0.1), (0.1, 0.9)] * 12, 6)
    other = answers(rng, [(0.5, 0.5)] * 24, 6)
    assert two_sample(one, other, seed=0)[0] < 0.01


def test_equal_answers_cannot_differ() -> None:
    same: Prompts = [[("a", "b")] * 3] * 5
    p_value, statistic, each = two_sample(same, same, seed=0, permutations=99)
    assert (p_value, statistic) == (1.0, 0.0)
    assert (each == 0).all()


def test_order_of_the_samples_and_uneven_numbers() -> None:
    rng = np.random.default_rng(4)
    one, other = answers(rng, [(0.5, 0.5)] * 6, 5), answers(rng, [(0.5, 0.5)] * 6, 3)
    statistic = two_sample(one, other, seed=0, permutations=99)[1]
    turned = two_sample([a[::-1] for a in one], [a[::-1] for a in other], seed=0, permutations=99)[1]
    assert turned == pytest.approx(statistic)
    assert statistic >= 0


def test_the_energy_statistic_by_hand() -> None:
    # Answers of one word: the distance is 0 or 1, and the statistic twice the mean between minus the means within.
    one: Prompts = [[("a",), ("a",)]]
    other: Prompts = [[("a",), ("b",)]]
    assert two_sample(one, other, seed=0, permutations=9)[1] == pytest.approx(2 * 0.5 - 0 - 0.5)


def test_words_have_text_and_calls() -> None:
    one = Drawn("x", 0, "Well, yes", [{"name": "turn", "arguments": '{"a": 1}', "id": "random"}])
    assert words(one.said)[:3] == ("Well", ",", "yes")
    assert "turn" in words(one.said)
    assert "random" not in words(one.said)


def test_pairs_that_cannot_be_tested_are_missing(tmp_path: Path) -> None:
    folder = write_stage(tmp_path, Settings(samples=2))
    for path in folder.glob("arms/both/sampling.jsonl"):
        path.write_text("".join(line + "\n" for line in path.read_text().splitlines() if '"sample": 0' in line))
    missing = Missing()
    result = sampling(read_stage(folder), seed=0, missing=missing)
    assert result is not None
    assert set(result) == {"speculative/baseline", "baseline_again/baseline"}
    [entry] = missing.entries
    assert entry["arm"] == "both"
    assert result["speculative/baseline"]["p_holm"] == result["speculative/baseline"]["p_value"]
    assert "p_holm" not in result["baseline_again/baseline"]
