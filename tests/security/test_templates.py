"""Chat templates and task templates are programs of strangers: no way into Python, and an end to time and memory."""

from __future__ import annotations

import resource
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from jinja2.exceptions import SecurityError

from evals.templates import BadTemplateError, template
from sqtool.errors import DataError
from sqtool.templates import check_template, limited

LONG = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
LARGE = {
    "doubling": "{% set n = namespace(s='xxxxxxxx') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "product": "{{ 'x' * 100000000000 }}",
    "padding": "{{ 'x' | center(100000000000) }}",
    "format": "{{ '%0100000000000d' % 1 }}",
}
INSIDE = (
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ messages.append(1) }}",
    "{{ raise_exception.__globals__ }}",
    "{{ (messages | map(attribute='__class__') | list)[0].__mro__ }}",
)


def _compiled(text: str) -> Any:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return _compile_jinja_template(text)


def _render(text: str, seconds: float = 1.0) -> str:
    """As transformers renders the chat template of a model."""
    with limited("model", seconds, 256 << 20):
        return str(_compiled(text).render(messages=[{"role": "user", "content": "hi"}]))


def test_transformers_compiles_chat_templates_in_a_sandbox() -> None:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    assert isinstance(_compiled("{{ messages }}").environment, ImmutableSandboxedEnvironment)


@pytest.mark.parametrize("text", INSIDE)
def test_no_way_into_python(text: str) -> None:
    try:
        said = _render(text)
    except (SecurityError, TemplateError):
        return
    assert said.strip() in ("", "[]"), said


def test_a_loop_without_an_end_is_ended() -> None:
    began = time.monotonic()
    with pytest.raises(DataError, match="did not end within 1 s") as caught:
        _render(LONG)
    assert caught.value.remedy
    assert time.monotonic() - began < 60


def test_and_so_it_is_in_another_thread() -> None:
    found: list[BaseException] = []

    def work() -> None:
        try:
            _render(LONG)
        except DataError as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert "did not end" in str(found[0])


@pytest.mark.parametrize("name", LARGE)
def test_a_text_that_fills_the_memory_is_not_made(name: str) -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(DataError, match=r"too large for the memory|did not end"):
        _render(LARGE[name], 20.0)
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_a_template_that_calls_itself() -> None:
    with pytest.raises(DataError, match="calls itself"):
        _render("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}")


@pytest.mark.parametrize("text", ["{% set x = 10 ** 10 ** 10 %}", "{{ x", "x" * 600_000, 7])
def test_templates_that_are_not_even_tried(text: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        check_template(tmp_path, text)
    assert caught.value.remedy


def test_honest_templates_pass(tmp_path: Path) -> None:
    marked = "{% for m in messages %}{%- generation -%}{{ m.content }}{%- endgeneration -%}{% break %}{% endfor %}"
    check_template(tmp_path, {"default": marked, "tools": "{{ tools | tojson }}"})
    assert _render(marked) == "hi"


def test_task_templates_have_the_same_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    import sqtool.templates

    with pytest.raises(BadTemplateError, match="powers"):
        template("{{ 10 ** n }}")
    with pytest.raises(BadTemplateError, match="SecurityError"):
        template("{{ x.__class__.__mro__ }}").value({"x": "a"})
    monkeypatch.setattr(sqtool.templates, "SECONDS", 1.0)
    with pytest.raises(DataError, match="too large for the memory"):
        template("{{ 'x' * 100000000000 }}").value({})
