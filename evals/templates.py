"""Templates of a task file (Jinja, sandboxed): a row's columns become a prompt, an expected answer, fields.

A template that is nothing but one `{{ expression }}` gives the expression's value, so that numbers stay numbers and
lists stay lists; any other gives text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from evals.schemas import parse_json
from sqtool.errors import did_you_mean
from sqtool.templates import limited

if TYPE_CHECKING:
    from jinja2.sandbox import SandboxedEnvironment

_EXPRESSION = re.compile(r"\{\{-?(.*?)-?\}\}", re.DOTALL)


class BadTemplateError(ValueError):
    """A template that cannot be rendered for a row, or that is none."""


@lru_cache(maxsize=1)
def _environment() -> SandboxedEnvironment:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def not_null(value: Any) -> Any:
        if value is None:
            raise BadTemplateError("a null would be written as text; write `| default('', true)` where that is meant")
        return value

    # Prompts are plain text: escaping as HTML would change what the model reads.
    found = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False, finalize=not_null)
    found.filters["fromjson"] = parse_json
    return found


@dataclass(frozen=True)
class Template:
    """A compiled template; compile with `template`."""

    source: str
    names: frozenset[str]
    """Variables that it reads."""
    _text: Callable[[Mapping[str, Any]], str]
    _value: Callable[[Mapping[str, Any]], Any] | None

    def text(self, row: Mapping[str, Any]) -> str:
        """The rendered text; `BadTemplateError` for an unknown column, a null, or whatever else goes wrong."""
        return str(self._render(self._text, row))

    def value(self, row: Mapping[str, Any]) -> Any:
        """The value of a single expression, else the rendered text; `BadTemplateError` as above (null is a value)."""
        return self._render(self._value or self._text, row)

    def _render(self, how: Callable[[Mapping[str, Any]], Any], row: Mapping[str, Any]) -> Any:
        from jinja2 import TemplateError, Undefined, UndefinedError

        # `row` reaches columns whose names are no identifiers.
        variables = {"row": row, **row}
        try:
            with limited(f"template {self.source[:60]!r}"):
                value = how(variables)
                if isinstance(value, Undefined):
                    str(value)  # raises, for it is strict
                return list(value) if isinstance(value, Iterator) else value
        except UndefinedError as error:
            unknown = sorted(self.names - variables.keys() - _environment().globals.keys())
            if unknown:
                raise BadTemplateError(
                    f"unknown column {unknown[0]!r}; {did_you_mean(unknown[0], list(row))}"
                ) from None
            raise BadTemplateError(f"{error.message} (in {self.source!r})") from None
        except BadTemplateError:
            raise
        except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise BadTemplateError(f"{type(error).__name__}: {error} (in {self.source!r})") from None


@lru_cache(maxsize=512)
def template(source: str) -> Template:
    """Compile a template; `BadTemplateError` says where its syntax is wrong."""
    from jinja2 import TemplateSyntaxError, meta, nodes

    env = _environment()
    try:
        tree = env.parse(source)
        if next(iter(tree.find_all(nodes.Pow)), None) is not None:
            # A huge power is one step inside Python, which no time limit can stop.
            raise BadTemplateError("not a template for prompts: it raises numbers to powers (**)")
        names = frozenset(meta.find_undeclared_variables(tree))
        text = env.from_string(source).render
        value = None
        # The parser drops nothing but whitespace around a tag, so one output node means one expression.
        outputs = [node for part in tree.body if isinstance(part, nodes.Output) for node in part.nodes]
        shape = _EXPRESSION.fullmatch(source.strip())
        if shape and len(tree.body) == len(outputs) == 1 and not isinstance(outputs[0], nodes.TemplateData):
            value = env.compile_expression(shape.group(1), undefined_to_none=False)
    except TemplateSyntaxError as error:
        where = f" (line {error.lineno} of it)" if source.count("\n") else ""
        raise BadTemplateError(f"not a template: {error.message}{where}") from None
    return Template(source, names, text, value)


def render_tree(tree: Any, row: Mapping[str, Any]) -> Any:
    """A tree of mappings and lists in which every string is a template."""
    if isinstance(tree, str):
        return template(tree).value(row)
    if isinstance(tree, Mapping):
        return {key: render_tree(value, row) for key, value in tree.items()}
    return [render_tree(value, row) for value in tree] if isinstance(tree, list | tuple) else tree


def check_tree(tree: Any) -> None:
    """`BadTemplateError` for the first string in the tree that is no template."""
    if isinstance(tree, str):
        template(tree)
    elif isinstance(tree, Mapping | list | tuple):
        for value in tree.values() if isinstance(tree, Mapping) else tree:
            check_tree(value)
