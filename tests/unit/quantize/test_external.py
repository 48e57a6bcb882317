"""What surrounds a worker, without one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.packing import pack
from quantize.backends import environments
from quantize.backends.external import conversations, old_config, private_copy
from sqtool.errors import InfrastructureError, UsageError
from sqtool.files import read_json, write_json


def write_rows(path: Path, ids: list[list[int]], places: list[list[int]] | None) -> Path:
    from safetensors.numpy import save_file

    arrays = {"input_ids": np.array(ids, np.int32)}
    if places is not None:
        arrays["position_ids"] = np.array(places, np.int32)
    save_file(arrays, path)
    return path


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=12), min_size=1, max_size=12), st.integers(12, 30))
def test_packed_conversations_come_out_again(talks: list[list[int]], length: int) -> None:
    """But for those that are the start of another one: they cannot be told from what fills gaps."""
    import tempfile

    rows = pack(talks, length)
    with tempfile.TemporaryDirectory() as place:
        path = write_rows(Path(place) / "t.safetensors", rows.input_ids.tolist(), rows.position_ids.tolist())
        got = conversations(path)
    different = {tuple(talk) for talk in talks}
    whole = {t for t in different if not any(o != t and o[: len(t)] == t for o in different)}
    assert {tuple(ids) for ids in got} == whole
    assert len(got) == len(whole)


def test_rows_without_positions_are_one_sequence_each(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "t.safetensors", [[1, 2, 3], [4, 5, 6]], None)
    assert conversations(path) == [[1, 2, 3], [4, 5, 6]]


def test_a_config_for_transformers_4() -> None:
    plain = {"dtype": "bfloat16", "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "hidden_size": 8}
    assert old_config(plain) == {"torch_dtype": "bfloat16", "rope_theta": 1e4, "hidden_size": 8}
    scaled = old_config({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}})
    assert scaled == {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}


def test_the_private_copy_has_no_code_and_no_pickles(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    write_json(model / "config.json", {"auto_map": {"AutoConfig": "evil.C"}, "dtype": "bfloat16"})
    write_json(model / "tokenizer_config.json", {"tokenizer_class": "TokenizersBackend"})
    for name in ("evil.py", "pytorch_model.bin", "model.safetensors", "tokenizer.json"):
        (model / name).write_text("x")
    private_copy(model, tmp_path / "old", old=True, with_code=False)
    assert sorted(p.name for p in (tmp_path / "old").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert (tmp_path / "old" / "model.safetensors").is_symlink()
    assert read_json(tmp_path / "old" / "config.json") == {"torch_dtype": "bfloat16"}
    assert read_json(tmp_path / "old" / "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"
    private_copy(model, tmp_path / "trusted", old=False, with_code=True)
    assert "auto_map" in read_json(tmp_path / "trusted" / "config.json")
    assert (tmp_path / "trusted" / "evil.py").is_file()
    assert read_json(model / "config.json")["dtype"] == "bfloat16", "the model itself stays as it is"


def test_an_environment_is_installed_when_its_stamp_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(environments.FOLDER, str(tmp_path))
    with pytest.raises(InfrastructureError, match="not installed") as caught:
        environments.python("gptqmodel")
    assert caught.value.remedy == "`sqtool backend install gptqmodel` makes it."
    site = tmp_path / "gptqmodel" / "lib" / "python3.11" / "site-packages" / "GPTQModel-7.7.0.dist-info"
    site.mkdir(parents=True)
    (site / "METADATA").write_text("Metadata-Version: 2.1\nName: GPTQModel\nVersion: 7.7.0\n")
    assert not environments.state("gptqmodel").installed
    (tmp_path / "gptqmodel" / environments.STAMP).write_text("done")
    assert environments.state("gptqmodel").versions == {"gptqmodel": "7.7.0"}
    assert environments.python("gptqmodel") == tmp_path / "gptqmodel" / "bin" / "python"
    with pytest.raises(UsageError, match="no backend 'gptqmodle'") as wrong:
        environments.install("gptqmodle")
    assert "gptqmodel" in wrong.value.remedy
