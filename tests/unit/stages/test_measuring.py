"""What the digests of the measuring stages cover."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from evals.spec import EngineSpec, EvaluateSpec
from sqtool.stages import baseline, control, evaluate
from sqtool.stages.contract import Inputs


@pytest.mark.parametrize("stage", [baseline, control, evaluate])
def test_files_that_the_engine_section_names_count_by_content(stage: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "texts.yaml").write_text("task: texts\nitems: texts.jsonl\nscorer: exact_match\n")
    (tmp_path / "texts.jsonl").touch()
    (tmp_path / "drawn").mkdir()
    named = [tmp_path / "tools.jinja", tmp_path / "drawn" / "generation_config.json"]
    for path in named:
        path.write_text("{}")
    engine = EngineSpec(extra_args=("--chat-template", "tools.jinja"), generation_config="drawn")
    inputs = Inputs(model=tmp_path, draft=None, seed=0, folders={}, root=tmp_path, sections={"engine": engine})
    assert set(named) <= set(stage.data_files(EvaluateSpec(tasks=("texts.yaml",), drift=None), inputs))
