"""Code in lm-eval's tasks. lm-eval itself trusts whoever writes a task's YAML: `!function` imports a Python file by its
path, and prompts are templates of a Jinja that can reach Python. Here both are closed for tasks that are not lm-eval's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evals.harness.spec import LmEvalSpec

YAML_SUFFIXES = (".yaml", ".yml")
LARGEST_TASK = 1024 * 1024
"""Bytes; lm-eval's own task files have a few KB."""
_PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map", "timestamp")}


def tagged_files(spec: LmEvalSpec, bases: Sequence[Path]) -> list[Path]:
    """The YAML files of a recipe's own tasks that name a function, or that cannot be read to find out; `bases` are the
    folders that paths may be relative to. Only files are looked at; nothing is imported."""
    start: list[Path] = []
    if spec.include_path is not None:
        for folder in _placed(spec.include_path, bases):
            start += sorted(p for p in folder.rglob("*") if p.suffix in YAML_SUFFIXES)
    for name in spec.tasks:
        if name.endswith(YAML_SUFFIXES):
            start += _placed(name, bases)
    seen: set[Path] = set()
    found = []
    while start:
        path = start.pop(0)
        real = path.resolve()
        if real in seen or not path.is_file():
            continue
        seen.add(real)
        events = _events(path)
        if events is None or any(_foreign(event) for event in events):
            found.append(path)
        start += list(_included(path, events or ()))
    return found


def _placed(name: str, bases: Sequence[Path]) -> list[Path]:
    return [path for base in bases if (path := base / name).exists()]


def _events(path: Path) -> list[Any] | None:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        if path.stat().st_size > LARGEST_TASK:
            return None
        return list(YAML(typ="safe", pure=True).parse(path.read_text(encoding="utf-8")))
    except (YAMLError, ValueError, OSError, RecursionError, AssertionError, LookupError, AttributeError, TypeError):
        return None  # what cannot be read cannot be cleared


def _foreign(event: Any) -> bool:
    tag = getattr(event, "tag", None)
    return tag is not None and str(tag) not in {"!", *_PLAIN}


def _included(path: Path, events: Sequence[Any]) -> Iterator[Path]:
    """What `include:` names, relative to the file: every scalar behind that key, wherever it stands."""
    after = False
    for event in events:
        kind, value = type(event).__name__, getattr(event, "value", None)
        if kind == "ScalarEvent" and after and str(value).endswith(YAML_SUFFIXES):
            yield path.parent / str(value)
        elif kind == "ScalarEvent":
            after = value == "include"
        elif kind != "SequenceStartEvent":
            after = False


def sandbox_templates() -> None:
    """Let lm-eval render its templates in Jinja's sandbox: out of the box a template may call anything in Python."""
    import lm_eval.utils as theirs
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if isinstance(theirs.env, ImmutableSandboxedEnvironment):
        return
    ours = ImmutableSandboxedEnvironment(
        loader=theirs.env.loader, undefined=theirs.env.undefined, keep_trailing_newline=True
    )
    ours.filters.update(theirs.env.filters)
    theirs.env = ours
