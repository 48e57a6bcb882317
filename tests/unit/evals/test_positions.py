"""Statistics from a file of positions, the same as NumPy's from an array in memory."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals import positions as module
from evals.positions import Positions, quantiles, statistics


def test_by_hand() -> None:
    rows = np.array([[0.0, 1, 0.0, 0.0], [1.0, 0, 2.0, 4.0], [np.nan, 1, 1.0, 1.0]], dtype=np.float32)
    found = statistics(lambda: [rows])
    assert (found["positions"], found["non_finite"]) == (3, 1)
    assert (found["kl_mean"], found["kl_max"], found["top1_agreement"]) == (0.5, 1.0, 0.5)
    assert found["perplexity_baseline"] == pytest.approx(math.e)
    assert found["perplexity_candidate"] == pytest.approx(math.e**2)
    assert found["perplexity_ratio"] == pytest.approx(math.e)
    assert found["rms_delta_p"] == pytest.approx(math.sqrt((math.exp(-2) - math.exp(-4)) ** 2 / 2))
    assert statistics(lambda: [rows[2:]]) == {"positions": 1, "non_finite": 1}
    assert statistics(list) == {"positions": 0, "non_finite": 0}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3000), st.floats(0.1, 6.0), st.booleans())
def test_counted_quantiles_are_exact(seed: int, count: int, spread: float, ties: bool) -> None:
    """The path for many values, forced: equal to NumPy's linear interpolation, ties and zeros included."""
    generator = np.random.default_rng(seed)
    values = np.exp(generator.normal(-8, spread, count)).astype(np.float32)
    if ties:
        values = np.where(generator.random(count) < 0.5, np.float32(0), np.round(values, 4)).astype(np.float32)
    wanted = [0.0, 0.5, 0.99, 0.999, 1.0]
    few, module.FEW = module.FEW, 0
    try:
        found = quantiles(lambda: np.array_split(values, 7), count, wanted)
    finally:
        module.FEW = few
    np.testing.assert_allclose(found, np.quantile(values.astype(np.float64), wanted), rtol=1e-12, atol=0)


def test_ranges_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 7)
    rows = np.arange(400, dtype=np.float32).reshape(100, 4)
    with Positions(tmp_path / "p") as positions:
        positions.append(rows[:33])
        assert len(list(positions.blocks([(0, 33)]))) == 5
        positions.append(rows[33:])
        assert positions.count == 100
        for ranges in ([(0, 100)], [(0, 10), (10, 20), (50, 51)], [(3, 3), (5, 9)], []):
            want = np.concatenate([rows[a:b] for a, b in ranges] + [np.zeros((0, 4), np.float32)])
            blocks = list(positions.blocks(ranges))
            assert all(len(block) <= 7 for block in blocks)
            np.testing.assert_array_equal(np.concatenate([*blocks, np.zeros((0, 4), np.float32)]), want)
    assert not (tmp_path / "p").exists()


def test_memory_does_not_grow_with_positions(tmp_path: Path) -> None:
    block = np.abs(np.random.default_rng(0).normal(size=(10_000, 4))).astype(np.float32)
    peaks = []
    for blocks in (30, 120):
        with Positions(tmp_path / "p") as positions:
            for _ in range(blocks):
                positions.append(block)
            tracemalloc.start()
            found = positions.statistics([(0, positions.count)])
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            assert found["positions"] == blocks * 10_000 > module.FEW
    assert peaks[1] < 1.1 * peaks[0]
