"""Reading a recipe file: everything that is wrong with it at once, each with its line and a suggestion."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sqtool.errors import Problem, RecipeError, UsageError, did_you_mean
from sqtool.hygiene import redact
from sqtool.recipe.model import Recipe, json_schema
from sqtool.recipe.shape import Shape
from sqtool.yaml_text import MAX_BYTES, Document, dotted, parse, too_large
from sqtool.yaml_text import Path as Place

MARKER = "pyproject.toml"
KEPT = "holds what looks like a secret (a token, a key, a password or a signed address)"
KEPT_HINT = "a recipe is kept with its run and published with the release; name an environment variable instead"
SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class LoadedRecipe:
    """A valid recipe and where it came from."""

    recipe: Recipe
    path: Path
    root: Path
    """The folder that paths in the recipe are relative to."""
    document: Document

    @property
    def name(self) -> str:
        """Name of the run folder."""
        return self.recipe.name or self.path.stem

    def problem(self, place: Place, message: str, hint: str = "") -> Problem:
        """A problem at `place` of this recipe, with its line."""
        return Problem(dotted(place), self.document.line(place), message, hint)


def project_root(path: Path) -> Path:
    """The nearest folder above `path` that has a pyproject.toml, else the folder of `path`."""
    folder = path.resolve().parent
    for candidate in (folder, *folder.parents):
        if (candidate / MARKER).is_file():
            return candidate
    return folder


def find_recipe(name: str, root: Path | None = None) -> Path:
    """The recipe file that `name` means: a path, or the stem of a file in recipes/. `UsageError` with a suggestion."""
    given = Path(name)
    if given.is_file():
        return given
    if given.is_dir():
        raise UsageError(f"{name} is a folder, not a recipe", remedy="Name a YAML file in it.")
    folder = (root or project_root(Path.cwd() / "recipe.yaml")) / "recipes"
    if given.name == name:
        for suffix in ("", *SUFFIXES):
            if (folder / (name + suffix)).is_file():
                return folder / (name + suffix)
    places = {given.parent, folder} if given.name == name else {given.parent}
    known = sorted(p for place in places if place.is_dir() for p in place.iterdir() if p.suffix in SUFFIXES)
    by_stem = {p.stem: p for p in known}
    suggestion = did_you_mean(given.stem, list(by_stem)) if by_stem else ""
    remedy = suggestion[:1].upper() + suggestion[1:]
    raise UsageError(f"no such recipe: {name}", remedy=remedy or "Give the path of a YAML file.")


def load_recipe(path: Path, root: Path | None = None) -> LoadedRecipe:
    """Read and check the recipe at `path`; `RecipeError` lists every problem. Files that it names are not opened."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RecipeError(path, [too_large()])
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RecipeError(path, [Problem("recipe", line, "not UTF-8 text", "save the file as UTF-8")]) from None
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot read the recipe {path}: {said}", remedy="Give the path of a YAML file.") from None
    kept = [Problem("recipe", number, KEPT, KEPT_HINT) for number, line in _lines(text) if redact(line) != line]
    if kept:
        raise RecipeError(path, kept)
    document = parse(text)
    recipe, problems = validate(document)
    if recipe is None:
        raise RecipeError(path, problems)
    loaded = LoadedRecipe(recipe, path, (root or project_root(path)).resolve(), document)
    crossed = _cross_check(loaded)
    if crossed:
        raise RecipeError(path, crossed)
    return loaded


def _lines(text: str) -> enumerate[str]:
    return enumerate(text.split("\n"), 1)


def validate(document: Document) -> tuple[Recipe | None, list[Problem]]:
    """The recipe in `document`, or None and every problem, ordered by line."""
    problems = list(document.problems)
    data = document.value
    recipe = None
    if isinstance(data, dict):
        seen = {p.field for p in problems}
        try:
            recipe = Recipe.model_validate(data)
        except ValidationError as error:
            problems += [p for p in _explain(error, data, document) if p.field not in seen]
        seen = {p.field for p in problems}
        problems += [p for p in _wrong_types(data, document) if p.field not in seen]
    elif not problems:
        problems.append(Problem("recipe", 1, f"expected keys and values, found {_found(data)}"))
    problems.sort(key=lambda p: (p.line, p.field))
    return (None if problems else recipe), problems


@cache
def _shape() -> Shape:
    return Shape(json_schema())


def _explain(error: ValidationError, data: Any, document: Document) -> list[Problem]:
    """One problem a place: pydantic reports every branch of a union, and names branches in the location."""
    by_place: dict[Place, list[tuple[str, str, str]]] = {}
    for entry in error.errors(include_url=False, include_input=True):
        place, missing = _place(entry["loc"], data, entry["type"] == "missing")
        message, hint = _words(entry, place, missing)
        by_place.setdefault(place, []).append((entry["type"], message, hint))
    problems = []
    for place, found in by_place.items():
        # A union's branch that does not fit at all says less than the branch that fits but for one key.
        if any(other[: len(place)] == place and other != place for other in by_place) and all(
            kind.endswith("_type") or kind in ("literal_error", "none_required") for kind, _, _ in found
        ):
            continue
        line = document.line(place)
        distinct = list(dict.fromkeys((message, hint) for _, message, hint in found))
        message = "; or ".join(m for m, _ in distinct) if len(distinct) > 1 else distinct[0][0]
        hint = next((h for _, h in distinct if h), "")
        problems.append(Problem(dotted(place), line, message, hint))
    return problems


def _place(location: tuple[str | int, ...], data: Any, missing: bool) -> tuple[Place, str]:
    """The part of pydantic's location that exists in the data; for a missing key also its name."""
    place: list[str | int] = []
    value = data
    for index, part in enumerate(location):
        if isinstance(value, dict) and part in value:
            value = value[str(part)]
            place.append(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
            place.append(part)
        elif missing and index == len(location) - 1:
            return (*place, part), str(part)
        # anything else is the name of a union's branch or of a validator
    return tuple(place), ""


def _words(entry: Any, place: Place, missing: str) -> tuple[str, str]:
    kind, found = entry["type"], _found(entry.get("input"))
    context = entry.get("ctx", {})
    shape = _shape()
    if kind == "extra_forbidden":
        known = shape.keys(place[:-1])
        return "unknown key", did_you_mean(str(place[-1]) if place else "", known)
    if kind == "missing":
        return f"the key `{missing}` is required and missing", ""
    if kind in ("literal_error", "enum"):
        choices = shape.choices(place)
        value = entry.get("input")
        hint = did_you_mean(value, choices) if isinstance(value, str) and choices else ""
        expected = context.get("expected", ", ".join(repr(c) for c in choices))
        return f"expected {expected}, found {found}", hint if hint.startswith("did") else ""
    if kind in ("value_error", "assertion_error"):
        return str(context.get("error", entry["msg"])), ""
    types = {"model_type": "a mapping", "model_attributes_type": "a mapping", "dict_type": "a mapping"}
    types |= {"list_type": "a list", "tuple_type": "a list", "set_type": "a list", "path_type": "a path"}
    if kind in types:
        return f"expected {types[kind]}, found {found}", ""
    if kind in ("int_parsing", "int_type", "int_from_float"):
        return f"expected a whole number, found {found}", ""
    if kind in ("float_parsing", "float_type"):
        return f"expected a number, found {found}", ""
    if kind in ("bool_parsing", "bool_type"):
        return f"expected true or false, found {found}", ""
    if kind == "string_pattern_mismatch":
        return f"expected a text that matches {context.get('pattern')}, found {found}", ""
    message = str(entry["msg"])
    message = message[:1].lower() + message[1:]
    return f"{message.replace('input should be', 'expected').replace('a valid ', 'a ')}, found {found}", ""


def _found(value: Any) -> str:
    """What stands there, for a message: short, and with its type where the text alone would not tell."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = repr(value) if isinstance(value, str) else str(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    return f"the text {text}" if isinstance(value, str) else text


def _wrong_types(data: Any, document: Document) -> list[Problem]:
    """Texts and truth values where a number belongs: pydantic would convert `"64"`, and a recipe should say 64."""
    shape = _shape()
    problems: list[Problem] = []

    def visit(value: Any, place: Place) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                visit(inner, (*place, key))
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                visit(inner, (*place, index))
        elif isinstance(value, str | bool) and value is not None:
            own = "boolean" if isinstance(value, bool) else "string"
            allowed = shape.types(place)
            if allowed and own not in allowed and allowed & {"integer", "number", "boolean"}:
                words = {"integer": "a whole number", "number": "a number", "boolean": "true or false"}
                wanted = " or ".join(words[t] for t in sorted(allowed) if t in words)
                hint = "leave the quotes out" if own == "string" and _numeric(value) else ""
                message = f"expected {wanted}, found {_found(value)}"
                problems.append(Problem(dotted(place), document.line(place), message, hint))

    visit(data, ())
    return problems


def _numeric(text: Any) -> bool:
    try:
        float(text)
    except (TypeError, ValueError):
        return False
    return True


def _cross_check(loaded: LoadedRecipe) -> list[Problem]:
    """What only the sections together show: a gated metric needs a task that is evaluated."""
    recipe = loaded.recipe
    tasks = list(recipe.evaluate.tasks)
    if any("/" in task or task.endswith(SUFFIXES) for task in tasks):
        return []  # a task's name then stands in its file; the gate's preflight reads it
    if recipe.evaluate.lm_eval is not None:
        return []  # nor are the members of lm-eval's groups known here
    problems = []
    for name in recipe.gate.metrics:
        task = name.rpartition(".")[0]
        if task not in tasks:
            written = "metrics" in recipe.gate.model_fields_set
            place: Place = ("gate", "metrics", name) if written else ("evaluate", "tasks")
            told = f"metric {name} needs the task {task!r}, which evaluate.tasks does not name"
            hint = did_you_mean(task, tasks) if written else "set gate.metrics to metrics of these tasks"
            problems.append(loaded.problem(place, told, hint))
    return problems
