"""Task files: one YAML file a task, no code in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from evals.items import Item, load_items, tools_problem
from evals.mapping import ItemMapping
from evals.scorers import SCORERS, Scorer, make_scorer, scorer_class, scorer_files
from evals.sources import ItemSource, open_rows, place, source_files
from evals.spec import EvaluateSpec, GenerationSpec
from sqtool.errors import DataError, Problem, RecipeError, UsageError, did_you_mean
from sqtool.files import read_json
from sqtool.spec import Spec
from sqtool.yaml_text import parse

TASK_FOLDER = Path("evals/tasks")


class ScorerChoice(Spec):
    """A scorer by name, with options."""

    name: str = Field(description="A scorer's name.")
    options: dict[str, Any] = Field(default_factory=dict, description="The scorer's options.")


class GenerationOverrides(Spec):
    """What a task sets differently from `evaluate.generation`."""

    temperature: float | None = Field(default=None, ge=0, description="0 is greedy.")
    top_p: float | None = Field(default=None, gt=0, le=1, description="Nucleus sampling.")
    max_tokens: int | None = Field(default=None, gt=0, description="Longest answer in tokens.")
    seed: int | None = Field(default=None, ge=0, description="Seed of each request.")


class TaskSpec(ItemMapping):
    """A task: which items, and how their answers are scored."""

    task: str = Field(pattern=r"^[A-Za-z0-9_-]+$", description="The task's name; metrics are called TASK.METRIC.")
    description: str = Field(default="", description="What it measures, for people.")
    items: ItemSource = Field(
        description="A JSONL or Parquet file, relative to the project root or to this file, or another source."
    )
    scorer: ScorerChoice = Field(description="A scorer's name, or {name, options}.")
    generation: GenerationOverrides = Field(
        default_factory=GenerationOverrides, description="Settings that differ from the recipe's."
    )
    slices: tuple[str, ...] = Field(
        default=(), description="Keys of an item's `fields` to report by (its kind always is)."
    )

    @field_validator("scorer", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("items", mode="before")
    @classmethod
    def _file_alone(cls, value: Any) -> Any:
        return {"file": value} if isinstance(value, str) else value


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a task file, with each scorer's own options."""
    schema = TaskSpec.model_json_schema()
    properties = schema["properties"]
    properties["items"] = {"anyOf": [{"type": "string"}, properties["items"]]}
    properties["scorer"] = {"anyOf": [{"enum": list(SCORERS)}, properties["scorer"]]}
    choice = schema["$defs"]["ScorerChoice"]
    choice["properties"]["name"]["enum"] = list(SCORERS)
    choice["allOf"] = [
        {
            "if": {"properties": {"name": {"const": name}}},
            "then": {"properties": {"options": scorer_class(name).model_json_schema()}},
        }
        for name in SCORERS
    ]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


@dataclass(frozen=True)
class Task:
    """A task ready to run: its items are loaded and checked."""

    spec: TaskSpec
    path: Path
    items_path: Path
    """The file or folder that the items are read from."""
    items: tuple[Item, ...]
    scorer: Scorer
    generation: GenerationSpec

    @property
    def name(self) -> str:
        return self.spec.task


def _line_of(tree: Any, location: Sequence[int | str]) -> int:
    """1-based line of the key at `location` in ruamel's tree; the nearest known ancestor's otherwise, or 0."""
    line = 0
    for step in location:
        marks = getattr(tree, "lc", None)
        if marks is None:
            break
        try:
            line = int(marks.key(step)[0] if isinstance(tree, dict) else marks.item(step)[0]) + 1
            tree = tree[step]
        except (KeyError, IndexError, TypeError):
            break
    return line


def _keys_at(location: Sequence[int | str]) -> list[str]:
    """Keys that are known in the section which holds the last step of `location`."""
    sections: dict[tuple[str, ...], type[Spec]] = {
        (): TaskSpec,
        ("scorer",): ScorerChoice,
        ("generation",): GenerationOverrides,
        ("items",): ItemSource,
    }
    section = sections.get(tuple(str(p) for p in location[:-1]))
    return list(section.model_fields) if section else []


def read_task(path: Path) -> TaskSpec:
    """The task in a YAML file. `RecipeError` lists every problem with its line; `DataError` when it is not YAML."""
    return _validated(path, _read_tree(path))


def _read_tree(path: Path) -> Any:
    """A task file as ruamel's tree, which knows the lines."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(path, "no such task file") from None
    except UnicodeDecodeError:
        raise DataError(path, "not UTF-8 text") from None
    return _tree(path, text)


@lru_cache(maxsize=64)
def _tree(path: Path, text: str) -> Any:
    """A plan asks every stage for its tasks: each file is parsed once, not once a stage. Nobody changes a tree."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        bad = [problem for problem in parse(text).problems if not problem.message.startswith("not YAML")]
        if bad:  # tags, aliases of aliases, what is too deep or too much: refused before a loader builds any of it
            raise RecipeError(path, bad)
        # The round-trip loader keeps lines and builds no Python objects; tags other than YAML's own stay data.
        tree = YAML(typ="rt", pure=True).load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise DataError(path, f"not YAML: {error.problem}", line=line) from None
    except YAMLError as error:
        raise DataError(path, f"not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise DataError(path, "expected a mapping with task, items and scorer")
    return tree


def _validated(path: Path, tree: Any) -> TaskSpec:
    try:
        return TaskSpec.model_validate(tree)
    except ValidationError as error:
        problems = []
        for found in error.errors():
            location = found["loc"]
            hint = ""
            message = found["msg"].removeprefix("Value error, ")
            if found["type"] == "extra_forbidden":
                message, hint = "unknown key", did_you_mean(str(location[-1]), _keys_at(location))
            elif found["type"] == "missing":
                message = "missing"
            problems.append(Problem(".".join(str(p) for p in location), _line_of(tree, location), message, hint))
        failure = RecipeError(path, problems)
        failure.remedy = "A task file has task, items and scorer; docs/evaluations.md has every key, with examples."
        raise failure from None


def find_task(name: str, root: Path) -> Path:
    """The file of a task named by its stem in `evals/tasks` or by a path; `UsageError` with the nearest name."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        for candidate in (root / name, Path(name)):
            if candidate.is_file():
                return candidate
        raise UsageError(f"no task file {name} (looked in {root})")
    folders = [root / TASK_FOLDER, Path(__file__).resolve().parent / "tasks"]
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = sorted({path.stem for folder in folders if folder.is_dir() for path in folder.glob("*.yaml")})
    raise UsageError(
        f"no task {name!r} in {root / TASK_FOLDER}; {did_you_mean(name, known)}",
        remedy="Name a task by its stem there, or give the path of a YAML file.",
    )


def _generation(base: GenerationSpec, overrides: GenerationOverrides) -> GenerationSpec:
    changed = overrides.model_dump(exclude_none=True)
    return GenerationSpec.model_validate({**base.model_dump(), **changed})


def load_task(name: str, root: Path, spec: EvaluateSpec) -> Task:
    """One task with its items (at most `spec.limit`), all checked."""
    path = find_task(name, root)
    tree = _read_tree(path)
    task = _validated(path, tree)

    def fault(message: str, *location: str) -> DataError:
        return DataError(path, message, line=_line_of(tree, location), field=location[0])

    try:
        scorer = make_scorer(task.scorer.name, task.scorer.options)
        generation = _generation(spec.generation, task.generation)
    except UsageError as error:
        raise fault(error.message, "scorer", "options") from None
    except ValidationError as error:
        raise fault(error.errors()[0]["msg"].removeprefix("Value error, "), "generation") from None
    rows = open_rows(task.items, path, root)
    shape = task.shape(_tools(task, path, root, _line_of(tree, ("tools",))))
    check = scorer.check
    if task.items.bfcl is not None:
        from evals.scorers.tool_calls import ToolCalls

        check = scorer.check_published if isinstance(scorer, ToolCalls) else check
    items = load_items(rows, check=check, slices=task.slices, shape=shape, limit=spec.limit)
    return Task(task, path, rows.path, tuple(items), scorer, generation)


def _tools(task: TaskSpec, path: Path, root: Path, line: int) -> Sequence[Mapping[str, Any]] | None:
    """The tools that a task brings along; `DataError` when they are none."""
    if task.tools is None:
        return None
    where: Path = path
    tools: Any = task.tools
    if isinstance(tools, str):
        line = 0
        where = tools_file(task, path, root)
        tools = read_json(where)
    if not (isinstance(tools, Sequence) and all(isinstance(tool, Mapping) for tool in tools)):
        raise DataError(where, "expected a list of OpenAI tools", line=line, field="tools")
    problem = tools_problem(tools)
    if problem is not None:
        raise DataError(where, problem[1], line=line, field=problem[0])
    return list(tools)


def tools_file(task: TaskSpec, path: Path, root: Path) -> Path:
    """The file that `tools` names."""
    return place(str(task.tools), root, path.parent)


def task_files(path: Path, root: Path) -> list[Path]:
    """Every file that decides what a task asks and how it scores; `DataError` for one that is missing."""
    task = read_task(path)
    files = [path, *source_files(task.items, path, root)]
    if isinstance(task.tools, str):
        files.append(tools_file(task, path, root))
        if not files[-1].is_file():
            raise DataError(path, f"no such file: {files[-1]}", field="tools")
    return files + scorer_files(task.scorer.name, task.scorer.options)


def load_tasks(spec: EvaluateSpec, root: Path) -> list[Task]:
    """All tasks of an evaluation, in the recipe's order; two of the same name are an error."""
    tasks = [load_task(name, root, spec) for name in spec.tasks]
    names = [task.name for task in tasks]
    for task in tasks:
        if names.count(task.name) > 1:
            raise DataError(task.path, f"another task of this evaluation is called {task.name!r} too", field="task")
    return tasks
