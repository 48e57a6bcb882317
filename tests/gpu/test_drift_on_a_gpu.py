"""Drift on a GPU gives the figures of a CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evals.drift import baseline_states, drift, texts_of
from evals.spec import DriftSpec, EvaluateSpec
from tests.unit.evals.builders import text_row
from tests.unit.evals.tiny import save_model

pytestmark = pytest.mark.gpu


def test_the_same_figures(tmp_path: Path) -> None:

    rows = [text_row(i, f"number {i} " * (i + 1)) for i in range(8)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "t.yaml").write_text("task: t\nitems: texts.jsonl\nscorer: exact_match\n")
    base, cand = (save_model(tmp_path / name, seed=at, vocab_size=32_000) for at, name in enumerate(("a", "b")))

    def measured(device: str) -> dict[str, Any]:
        values = {"items": 8, "prose": None, "device": device, "dtype": "bfloat16", "batch_tokens": 600}
        spec = EvaluateSpec(tasks=("t.yaml",), drift=DriftSpec.model_validate(values))
        states = tmp_path / device
        states.mkdir()
        baseline_states(spec, model=base, texts=texts_of(spec, base, tmp_path), out=states)
        return drift(spec, baseline=base, candidate=cand, states=states, out=states)

    cpu, gpu = measured("cpu"), measured("cuda")
    assert gpu["device"] == "cuda"
    assert gpu["all"]["positions"] == cpu["all"]["positions"]
    # Hidden states are bf16 and come from other kernels.
    for figure in ("kl_mean", "kl_p99", "perplexity_ratio", "rms_delta_p"):
        assert gpu["all"][figure] == pytest.approx(cpu["all"][figure], rel=0.03), figure
    assert gpu["stability"]["activation_max"] == pytest.approx(cpu["stability"]["activation_max"], rel=0.03)


def test_products_of_halves_are_float32() -> None:
    import torch

    from evals.heads import Head, _kept

    for dtype in (torch.bfloat16, torch.float16):
        weight = torch.randn(50_000, 256, device="cuda", dtype=dtype)
        hidden = torch.randn(40, 256, device="cuda", dtype=dtype)
        head = Head(_kept(weight), None, None, 50_000, bf16=dtype == torch.bfloat16)
        exact = hidden.double() @ weight.double().T
        assert float((head.logits(hidden) - exact).abs().max()) < 3e-6 * float(exact.abs().max())
