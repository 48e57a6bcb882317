from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sqtool.files import write_json
from sqtool.report import collect, render, write_report
from sqtool.report.plots import OVERLAP, RANGES, alt_texts, draw_plots, series

Make = Callable[..., Path]


def row(name: str, ratio: float | None, saturated: float = 0.0, also: list[str] | None = None) -> dict[str, Any]:
    return {"name": name, "also": also or [], "ratio": ratio, "saturated": saturated}


def figures(**changes: Any) -> dict[str, Any]:
    layers = []
    for n in range(3):
        stem = f"model.layers.{n}."
        also = [f"{stem}self_attn.k_proj", f"{stem}self_attn.v_proj"]
        layers.append(row(f"{stem}self_attn.q_proj", 1.0 + n / 10, 0.001 * n, also))
        layers.append(row(f"{stem}mlp.down_proj", 0.9))
    return {
        "calibration_tokens": 4000,
        "traffic_tokens": 16000,
        "dimensions": {},
        "limits": {"ratio": 1.5, "saturated": 0.005},
        "layers": layers,
        "kv": [{"layer": n, "keys": row("layer 0", 1.1), "values": row("layer 0", 0.8)} for n in range(3)],
        "overlap": {
            "lengths": {"edges": [16, 32], "calibration": [0.5, 0.5], "traffic": [1.0, 0.0], "overlap": 0.5},
            "kinds": {"names": ["$x$", "b"], "calibration": [0.2, 0.8], "traffic": [0.8, 0.2], "overlap": 0.4},
        },
        "channel_ratios": {"edges": [0.0, 1.0], "counts": [3, 1]},
        **changes,
    }


def test_layers_with_one_input_are_one_series() -> None:
    found = series(figures())
    assert list(found) == ["q, k, v", "down", "KV cache: keys", "KV cache: values"]
    assert found["q, k, v"] == [(0, 1.0, 0.0), (1, 1.1, 0.001), (2, 1.2, 0.002)]


def test_many_experts_are_their_worst_and_names_without_a_layer_are_left_out() -> None:
    layers = [row(f"model.layers.0.mlp.experts.{e}.down_proj", 1.0 + e / 10, e / 100) for e in range(4)]
    found = series(figures(layers=[*layers, row("lm_head", 2.0)], kv=[]))
    assert found == {"down": [(0, 1.3, 0.03)]}


def test_the_same_figures_give_the_same_small_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        draw_plots(tmp_path / name, figures())
    for file in (RANGES, OVERLAP):
        content = (tmp_path / "a" / file).read_bytes()
        assert content == (tmp_path / "b" / file).read_bytes()
        assert len(content) < 80_000
        assert ET.fromstring(content).tag.endswith("svg")
    assert b"q, k, v" in (tmp_path / "a" / RANGES).read_bytes()
    assert b"2026" not in (tmp_path / "a" / RANGES).read_bytes(), "no date"
    drawn = (tmp_path / "a" / OVERLAP).read_text()
    assert "50% overlap" in drawn
    assert "$x$" in drawn


def test_a_layer_without_calibration_is_drawn_and_said(tmp_path: Path) -> None:
    broken = figures(layers=[row("model.layers.0.mlp.down_proj", None, 1.0)])
    draw_plots(tmp_path, broken)
    assert "down_proj, nothing was calibrated" in alt_texts(broken)[RANGES]


def test_without_traffic_there_is_nothing_to_draw(tmp_path: Path) -> None:
    bare = figures(layers=[{"name": "model.layers.0.mlp.down_proj", "also": []}])
    assert alt_texts(bare) == {}
    draw_plots(tmp_path, bare)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def run(make_run: Make) -> Path:
    folder = make_run()
    write_json(folder / "calibrate" / "activations.json", figures())
    return folder


def test_the_report_shows_the_plots(run: Path) -> None:
    text = write_report(run).read_text()
    assert "4000 tokens of calibration and 16000 of traffic went through the unmodified model" in text
    for file in (RANGES, OVERLAP):
        assert f"]({file})" in text
        assert (run / file).is_file()
    assert "highest at model.layers.2.self_attn.q_proj, 1.2 times" in text
    assert text == render(collect(run)), "drawn again, it is the same"


def test_figures_of_another_version_do_not_hide_the_report(run: Path) -> None:
    write_json(run / "calibrate" / "activations.json", {"dimensions": {}})
    text = write_report(run).read_text()
    assert "the results of calibrate cannot be shown" in text
    assert text.startswith("# RELEASED")
    assert "coverage-" not in text
