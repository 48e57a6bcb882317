"""What counts as served differently, and what does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evals.config_diff import IGNORED_GENERATION, differences
from sqtool.errors import DataError
from tests.unit.evals.tiny import save_tokenizer

Edit = Callable[[Path], None]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "original"
    folder.mkdir()
    save_tokenizer(folder)
    (folder / "config.json").write_text('{"eos_token_id": 2}')
    (folder / "generation_config.json").write_text('{"eos_token_id": 2, "temperature": 0.7}')
    return folder


@pytest.fixture
def pair(original: Path, tmp_path: Path) -> tuple[Path, Path]:
    sides = tmp_path / "baseline", tmp_path / "candidate"
    for side in sides:
        shutil.copytree(original, side)
    return sides


def in_json(name: str, change: Callable[[dict[str, Any]], Any]) -> Edit:
    def edit(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        change(value)
        (folder / name).write_text(json.dumps(value, ensure_ascii=False))

    return edit


def template(text: str) -> Edit:
    return lambda folder: (folder / "chat_template.jinja").write_text(text) and None


def into_config(folder: Path) -> None:
    """The template as older versions of transformers keep it."""
    path = folder / "chat_template.jinja"
    in_json("tokenizer_config.json", lambda v: v.update(chat_template=path.read_text()))(folder)
    path.unlink()


def merges_as_texts(value: dict[str, Any]) -> None:
    value["model"]["merges"] = [" ".join(pair) for pair in value["model"]["merges"]]


SAME: dict[str, Edit] = {
    "nothing": lambda folder: None,
    "who wrote it": in_json("generation_config.json", lambda v: v.update(dict.fromkeys(IGNORED_GENERATION, 1))),
    "null is no value": in_json("generation_config.json", lambda v: v.update(top_p=None)),
    "one stop token as a list": in_json("generation_config.json", lambda v: v.update(eos_token_id=[2])),
    "order of keys": in_json("generation_config.json", lambda v: v.update(eos_token_id=v.pop("eos_token_id"))),
    "how transformers loads it": in_json(
        "tokenizer_config.json",
        lambda v: v.update(tokenizer_class="X", backend="Y", padding_side="left", pad_token="x"),
    ),
    "an added token with its flags": in_json(
        "tokenizer_config.json", lambda v: v.update(eos_token={"content": "<|im_end|>", "special": True})
    ),
    "no known length": in_json("tokenizer_config.json", lambda v: v.update(model_max_length=int(1e30))),
    "what calibration left": in_json(
        "tokenizer.json",
        lambda v: v.update(
            truncation={"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}, version="1.0"
        ),
    ),
    "merges in the older form": in_json("tokenizer.json", merges_as_texts),
    "template in tokenizer_config": into_config,
    "a line break at the template's end": lambda folder: template((folder / "chat_template.jinja").read_text() + "\n")(
        folder
    ),
}
OTHER: dict[str, tuple[Edit, str]] = {
    "temperature": (
        in_json("generation_config.json", lambda v: v.update(temperature=0.6)),
        "generation_config.json:temperature",
    ),
    "a field that we do not know": (
        in_json("generation_config.json", lambda v: v.update(new_thing=1)),
        "generation_config.json:new_thing",
    ),
    "stop token": (
        in_json("generation_config.json", lambda v: v.update(eos_token_id=0)),
        "generation_config.json:eos_token_id",
    ),
    "no stop token": (
        in_json("generation_config.json", lambda v: v.pop("eos_token_id")),
        "generation_config.json:eos_token_id",
    ),
    "tokenizer's stop": (
        in_json("tokenizer_config.json", lambda v: v.update(eos_token="<|endoftext|>")),
        "tokenizer_config.json:eos_token",
    ),
    "length": (
        in_json("tokenizer_config.json", lambda v: v.update(model_max_length=512)),
        "tokenizer_config.json:model_max_length",
    ),
    "normalizer": (
        in_json("tokenizer.json", lambda v: v.update(normalizer={"type": "Lowercase"})),
        "tokenizer.json:normalizer",
    ),
    "a merge less": (in_json("tokenizer.json", lambda v: v["model"]["merges"].pop()), "tokenizer.json:model.merges"),
    "an added token less": (
        in_json("tokenizer.json", lambda v: v["added_tokens"].pop()),
        "tokenizer.json:added_tokens",
    ),
    "template": (template("{{ messages[0]['content'] }}"), "chat_template:default"),
    "no template": (lambda folder: (folder / "chat_template.jinja").unlink(), "chat_template:default"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json:file"),
}


@pytest.mark.parametrize("name", SAME)
def test_what_changes_no_answer(pair: tuple[Path, Path], name: str) -> None:
    SAME[name](pair[1])
    assert differences(*pair) == []
    assert differences(*pair[::-1]) == []


@pytest.mark.parametrize("name", OTHER)
def test_what_changes_answers_is_named(pair: tuple[Path, Path], name: str) -> None:
    edit, where = OTHER[name]
    edit(pair[1])
    found = differences(*pair)
    assert [f"{d.file}:{d.field}" for d in found] == [where]
    assert found[0].baseline != found[0].candidate
    assert max(len(found[0].baseline), len(found[0].candidate)) < 250
    turned = differences(*pair[::-1])
    assert [(d.candidate, d.baseline) for d in turned] == [(d.baseline, d.candidate) for d in found]


def test_without_the_file_the_models_config_counts(pair: tuple[Path, Path]) -> None:
    (pair[0] / "generation_config.json").unlink()
    (pair[1] / "generation_config.json").write_text('{"eos_token_id": 2, "pad_token_id": 0}')
    assert differences(*pair) == []
    (pair[0] / "config.json").write_text('{"eos_token_id": 1}')
    assert [d.field for d in differences(*pair)] == ["eos_token_id"]


def test_vocabularies_of_another_kind_are_compared_as_files(pair: tuple[Path, Path]) -> None:
    for side in pair:
        (side / "tokenizer.model").write_bytes(b"pieces")
    (pair[0] / "tokenizer.json").unlink()
    assert differences(*pair) == []
    (pair[1] / "tokenizer.model").write_bytes(b"other pieces")
    assert [f"{d.file}:{d.field}" for d in differences(*pair)] == ["tokenizer.json:tokenizer.model"]


def test_a_long_template_shows_the_line_that_differs(pair: tuple[Path, Path]) -> None:
    text = (pair[0] / "chat_template.jinja").read_text()
    many = "\n".join([text, *["{# a line #}"] * 30])
    template(many)(pair[0])
    template(many.replace("{# a line #}", "{# another line #}", 1))(pair[1])
    (found,) = differences(*pair)
    assert found.baseline.endswith(": {# a line #}")
    assert found.candidate.endswith(": {# another line #}")
    assert found.candidate.startswith("line ")


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json", "tokenizer.json"])
def test_broken_files_are_errors(pair: tuple[Path, Path], name: str) -> None:
    (pair[1] / name).write_text("{")
    with pytest.raises(DataError, match=name):
        differences(*pair)


def test_a_folder_is_the_same_as_itself(original: Path) -> None:
    assert differences(original, original) == []
