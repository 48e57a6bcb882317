"""Recipes as an attacker writes them: always one error with a line and a remedy, in a moment, and nothing is run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from evals.tasks import read_task
from sqtool.errors import RecipeError
from sqtool.recipe import load_recipe
from tests.security.conftest import METHODS

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join(['*' + old] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)  # fmt: skip
HOSTILE: dict[str, str | bytes] = {
    "python object": "x: !!python/object/apply:os.system ['touch owned']\n",
    "python name": "x: !!python/name:os.system\n",
    "own tag": "x: !include /etc/passwd\n",
    "billion laughs": LAUGHS,
    "refers to itself": "x: &x [*x]\n",
    "deep lists": "x: " + "[" * 50_000 + "\n",
    "deep mappings": "x: " + "{a: " * 40_000 + "\n",
    "very many values": "x: [" + "1," * 60_000 + "1]\n",
    "huge decimal": "seed: " + "9" * 20_000 + "\n",
    "huge hexadecimal": "seed: 0x" + "f" * 20_000 + "\n",
    "infinite": "seed: 1e999\n",
    "not a number": "seed: .nan\n",
    "NUL byte": "name: a\x00b\n",
    "NUL escape": 'name: "a\\0b"\n',
    "half a surrogate pair": 'description: "\\ud800"\n',
    "duplicate key": "seed: 1\nseed: 2\n",
    "merge key": "x: &x {seed: 1}\n<<: *x\n",
    "not UTF-8": b"name: \xff\xfe\n",
    "key that is a list": "? [a, b]\n: 1\n",
    "broken directive": "%YAML 9.9\n---\nseed: 1\n",
    "two documents": "seed: 1\n---\nseed: 2\n",
    "empty": "",
    "a list": "- 1\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_one_error_with_a_line_and_a_remedy(
    name: str, recipe: Callable[[str | bytes], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    began = time.process_time()
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe(HOSTILE[name]))
    assert time.process_time() - began < 5
    assert all(problem.line >= 1 for problem in caught.value.problems)
    assert caught.value.remedy
    assert len(caught.value.message) < 5000, "an error does not repeat what it was given"
    assert not (tmp_path / "owned").exists()


def test_the_size_is_the_one_problem_without_a_line(recipe: Callable[[str | bytes], Path]) -> None:
    with pytest.raises(RecipeError, match="larger than 256 KiB") as caught:
        load_recipe(recipe("#" * 300_000))
    assert caught.value.problems[0].hint


@pytest.mark.parametrize("name", ["python object", "own tag", "billion laughs", "deep lists", "refers to itself"])
def test_task_files_have_the_same_limits(name: str, tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    content = HOSTILE[name]
    assert isinstance(content, str)
    path.write_text("task: t\nitems: x.jsonl\nscorer: exact_match\n" + content)
    with pytest.raises(RecipeError) as caught:
        read_task(path)
    assert caught.value.problems[0].line >= 4


@pytest.mark.parametrize(
    "line",
    [
        "# my token: hf_abcdefghijklmnopqrstuvwxyz",
        "description: sk-abcdefghijklmnopqrstuvwxyz",
        "engine: {kind: openai, base_url: 'http://me:hunter22@host/v1', model: m}",
        "description: https://bucket.s3.amazonaws.com/x?X-Amz-Signature=0123456789abcdef",
        "description: planted-by-the-test-0123",
    ],
)
def test_a_recipe_with_a_secret_is_refused_and_not_repeated(
    line: str, recipe: Callable[[str | bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", "planted-by-the-test-0123")
    with pytest.raises(RecipeError, match="looks like a secret") as caught:
        load_recipe(recipe(METHODS + line + "\n"))
    assert caught.value.problems[0].line == 4
    for secret in ("abcdefghij", "hunter22", "0123"):
        assert secret not in caught.value.message
