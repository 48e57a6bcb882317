"""transformers in process on a GPU: the same answers and probabilities as on the CPU, and seeds that hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from evals.engines import open_engine
from evals.engines.base import Limits, Question
from evals.items import Item
from evals.scorers import Answer
from evals.spec import EngineSpec, GenerationSpec
from tests.unit.evals.builders import text_row
from tests.unit.evals.tiny import save_model

LIMITS = Limits(1, 1.0, 0)
PLAIN, HOT = GenerationSpec(max_tokens=12), GenerationSpec(temperature=1.2, top_p=0.9, max_tokens=12)

pytestmark = pytest.mark.gpu


def measured(device: str, tiny: Path) -> tuple[list[Answer], list[Answer], list[Answer]]:
    """Greedy answers, log-likelihoods, and sampled answers that are asked for in the other order."""
    spec = EngineSpec.model_validate({"kind": "hf", "device": device, "dtype": "float32", "batch_size": 5})
    questions = [Question(Item.model_validate(text_row(i, "x" * (17 * i + 1)))) for i in range(12)]
    found: list[list[Answer]] = []
    with open_engine(spec, model=tiny, out=tiny, root=tiny) as engine:
        assert engine.facts()["device_class"] == device
        for generation, asked in ((PLAIN, questions), (HOT, questions), (HOT, questions[::-1])):
            got: dict[str, Answer] = {}
            engine.ask(asked, generation, LIMITS, seed=3, done=lambda q, a, got=got: got.__setitem__(q.item.id, a))
            found.append([got[q.item.id] for q in questions])
        likely: list[Answer] = []
        engine.loglikelihoods(questions, lambda item: (" yes", "no"), LIMITS, done=lambda q, a: likely.append(a))
    assert found[1] == found[2], "sampled answers do not depend on their neighbours"
    return found[0], likely, found[1]


def test_a_gpu_answers_as_a_cpu_does(tmp_path: Path) -> None:
    tiny = save_model(tmp_path / "tiny", dtype="float32")
    (here, likely_here, _), (there, likely_there, _) = measured("cpu", tiny), measured("cuda", tiny)
    assert sum(a == b for a, b in zip(here, there, strict=True)) >= len(here) - 1
    for a, b in zip(likely_here, likely_there, strict=True):
        for one, other in zip(a.loglikelihoods, b.loglikelihoods, strict=True):
            assert other.logprob == pytest.approx(one.logprob, abs=1e-2)
