"""Which lm-eval tasks a recipe means: their names, files, configuration and metrics. Nothing is loaded or downloaded.

lm-eval knows some 15,000 tasks and needs seconds to read their YAML files; where `include_path` has everything that is
named, only that folder is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from evals.client import NEUTRAL
from evals.harness.quiet import quiet
from evals.harness.spec import LmEvalSpec
from sqtool.errors import DataError, UsageError, did_you_mean
from sqtool.files import sha256_text

LM_EVAL = "lm_eval"
"""The distribution's name."""
YAML = (".yaml", ".yml")
LONGEST_NAME = 200
"""Bytes of a task's name: with the endings of its files it must fit into what a file system allows."""
DATA_SUFFIXES = (*YAML, ".py", ".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet", ".arrow")
PER_ITEM = ("mean", "nanmean")
"""Aggregations whose result is the mean of one number an item."""
ANSWER_METRICS = ("gen_len", "empty", "truncated", "repetition")
"""What every generated answer has, whatever the task (`evals.scorers.builtin`)."""
TOKEN_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
SERVED_SAMPLING: dict[str, float] = {"temperature": 0.0, **NEUTRAL}
"""Generation settings of a task that a server takes by the same name, with the values that change nothing: a server
would take those that a request does not name from the checkpoint."""
SERVED = frozenset(("until", "do_sample", *TOKEN_LIMITS, *SERVED_SAMPLING))
NOWHERE = "Names are those of `lm_eval ls tasks`, of include_path's YAML files, or paths of YAML files."


@dataclass(frozen=True)
class Leaf:
    """One task (never a group). `config` is its YAML with includes, functions as the text that names them; for a task
    that is written in Python it says little. `path` is None where it has no file of its own."""

    name: str
    config: Mapping[str, Any]
    path: Path | None

    @property
    def version(self) -> str:
        """The task's own version, "none" without one."""
        known = self.config.get("metadata")
        return str(known.get("version", "none")) if isinstance(known, Mapping) else "none"

    @property
    def digest(self) -> str:
        """Hex sha256 of the configuration, wherever it lies."""
        text = json.dumps(self.config, sort_keys=True, default=str)
        return sha256_text(text.replace(str(self.path.parent), "") if self.path else text)


@dataclass(frozen=True)
class Catalogue:
    """What the names in a recipe mean. `manager` is lm-eval's TaskManager, `names` what to load from it."""

    manager: Any
    names: tuple[str, ...]
    leaves: Mapping[str, Leaf]
    groups: tuple[Path, ...]


def version() -> str:
    """lm-eval's version."""
    return metadata.version(LM_EVAL)


def read(spec: LmEvalSpec, root: Path) -> Catalogue:
    """The catalogue of a recipe; `UsageError` with the nearest name for one that lm-eval does not know, `DataError` for
    an include_path that is none."""
    folder = _include_path(spec, root)
    states = () if folder is None else tuple((str(p), p.stat().st_mtime_ns) for p in _files_below(folder))
    names = tuple(str((root / name).resolve()) if name.endswith(YAML) else name for name in spec.tasks)
    for name, given in zip(names, spec.tasks, strict=True):
        if name.endswith(YAML) and not Path(name).is_file():
            raise UsageError(f"evaluate.lm_eval.tasks: no such file: {given} (looked in {root})", remedy=NOWHERE)
    return _read(names, folder, states)


@cache
def _read(names: tuple[str, ...], folder: Path | None, states: tuple[tuple[str, int], ...]) -> Catalogue:
    # `states` only tells one content of the folder from another.
    with quiet():
        catalogue, missing = _walked(names, _manager(folder, states, builtin=False))
        if missing:
            catalogue, missing = _walked(names, _manager(folder, states, builtin=True))
    unknown = [name for name in missing if name in names]
    if unknown:
        raise UsageError(
            f"evaluate.lm_eval.tasks: lm-eval {version()} knows no task {unknown[0]!r}"
            + ("".join(f"; {text}" for text in _unreadable(folder)) if folder else ""),
            remedy=f"{_nearest(unknown[0], catalogue.manager.all_tasks)} {NOWHERE}".strip(),
        )
    for name in catalogue.leaves:
        plain = name.isprintable() and len(name.encode()) <= LONGEST_NAME
        if not name or not plain or "/" in name or "\\" in name or name.startswith("."):
            raise UsageError(
                f"evaluate.lm_eval.tasks: the task {name[:LONGEST_NAME]!r} cannot be measured: its records need a file "
                "of that name"
            )
    return catalogue


@cache
def _manager(folder: Path | None, _states: tuple[tuple[str, int], ...], *, builtin: bool) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=None if folder is None else str(folder), include_defaults=builtin)


def _nearest(word: str, names: Sequence[str]) -> str:
    hint = did_you_mean(word, names)
    return hint if hint.startswith("did you mean") else ""  # nobody reads a list of 15,000 names


def _include_path(spec: LmEvalSpec, root: Path) -> Path | None:
    if spec.include_path is None:
        return None
    folder = (root / spec.include_path).resolve()
    if not folder.is_dir():
        raise DataError(folder, "no such folder", field="evaluate.lm_eval.include_path")
    if not any(path.suffix == ".yaml" for path in _files_below(folder)):
        raise DataError(
            folder,
            "holds no task",
            field="evaluate.lm_eval.include_path",
            remedy="lm-eval looks for *.yaml files in this folder and below it.",
        )
    return folder


def _files_below(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix in DATA_SUFFIXES
        and path.is_file()
        and not any(part.startswith((".", "__pycache__")) for part in path.relative_to(folder).parts)
    )


def _unreadable(folder: Path) -> Iterator[str]:
    """What is wrong with the YAML files that lm-eval passes over in silence."""
    from lm_eval.tasks._yaml_loader import load_yaml

    for path in _files_below(folder):
        if path.suffix != ".yaml":
            continue
        try:
            load_yaml(path, resolve_func=False)
        except Exception as error:  # noqa: BLE001 - a task's YAML may be wrong in any way, and is only reported here
            yield f"{path} cannot be read ({' '.join(str(error).split()) or type(error).__name__})"


def _walked(names: Sequence[str], manager: Any) -> tuple[Catalogue, list[str]]:
    """The leaves of all names, and those names, or members of groups, that the manager does not know."""
    from lm_eval.tasks._index import TaskIndex
    from lm_eval.tasks._yaml_loader import load_yaml

    index = manager.task_index
    leaves: dict[str, Leaf] = {}
    groups: list[Path] = []
    missing: list[str] = []

    def visit(name: str, entry: Any) -> None:
        config = entry.cfg or (load_yaml(entry.yaml_path, resolve_func=False) if entry.yaml_path else {})
        kind = entry.kind.name
        if kind == "TAG":
            for member in sorted(entry.tags):
                visit(member, index[member])
        elif kind == "GROUP":
            if entry.yaml_path is not None:
                groups.append(entry.yaml_path)
            members(name, config, entry.yaml_path)
        else:
            leaves[name] = Leaf(name, config, entry.yaml_path)

    def members(group: str, config: Mapping[str, Any], path: Path | None) -> None:
        for item in config.get("task") or ():
            own: Mapping[str, Any] = {} if isinstance(item, str) else item
            name = item if isinstance(item, str) else str(item.get("group", item.get("task")))
            if name in index:
                visit(name, index[name])
            elif "group" in own:
                members(f"{group}::{name}", own, path)
            else:
                # lm-eval takes what it does not know for a task that is written inside the group.
                if not own.keys() & {"dataset_path", "custom_dataset", "class"} and "dataset_path" not in config:
                    missing.append(name)
                leaves[f"{group}::{name}"] = Leaf(f"{group}::{name}", {**config, **own, "task": name}, path)

    for name in names:
        entry = index.get(name) or (TaskIndex.entry_from_path(Path(name)) if name.endswith(YAML) else None)
        if entry is None:
            missing.append(name)
        else:
            visit(entry.name, entry)
    return Catalogue(manager, tuple(names), leaves, tuple(groups)), missing


def data_files(spec: LmEvalSpec, root: Path) -> list[Path]:
    """Files whose content the result depends on: what include_path holds, and the YAML files, functions and local data
    of the tasks. Those that come with lm-eval are left to its version."""
    import lm_eval
    from lm_eval.tasks._yaml_loader import load_yaml

    catalogue = read(spec, root)
    shipped = Path(lm_eval.__file__).resolve().parent
    folder = _include_path(spec, root)
    found = {} if folder is None else dict.fromkeys(_files_below(folder))

    def add(path: Path) -> None:
        path = path.resolve()
        if path in found or path.is_relative_to(shipped) or not path.is_file():
            return
        found[path] = None
        if path.suffix in YAML:
            own = load_yaml(path, resolve_func=False, recursive=False).get("include") or ()
            for other in (own,) if isinstance(own, str) else own:
                add(path.parent / other)

    for path in (*catalogue.groups, *(leaf.path for leaf in catalogue.leaves.values() if leaf.path)):
        add(path)
        for code in sorted(path.parent.glob("*.py")):
            add(code)
    for leaf in catalogue.leaves.values():
        for name in _data_names(leaf.config):
            if "://" not in name:
                for path in sorted(root.glob(name)) if not Path(name).is_absolute() else (Path(name),):
                    add(path)
    return list(found)


def _data_names(config: Mapping[str, Any]) -> Iterator[str]:
    """Texts in `dataset_kwargs.data_files`, which is a text, a list or a mapping of either."""

    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            for inner in value.values():
                yield from texts(inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                yield from texts(inner)

    options = config.get("dataset_kwargs")
    if isinstance(options, Mapping):
        yield from texts(options.get("data_files"))


def fingerprint(spec: LmEvalSpec, root: Path) -> dict[str, str]:
    """lm-eval's version and each task's own, for a stage's digest. Never raises: what is wrong with the names is said
    elsewhere."""
    found = {"lm-eval": version()}
    try:
        leaves = read(spec, root).leaves
    except (UsageError, OSError):
        return found
    return found | {f"lm-eval task {leaf.name}": f"{leaf.version} {leaf.digest[:16]}" for leaf in leaves.values()}


def check_served(spec: LmEvalSpec, catalogue: Catalogue) -> None:
    """`DataError` for a task with generation settings that a server does not have."""
    for leaf in catalogue.leaves.values():
        unknown = sorted({**(leaf.config.get("generation_kwargs") or {}), **spec.gen_kwargs}.keys() - SERVED)
        if unknown:
            raise DataError(
                leaf.path or f"lm-eval task {leaf.name}",
                f"a server cannot generate with {', '.join(unknown)}",
                field="generation_kwargs",
                remedy="Replace the setting in the task, or evaluate with `engine: {kind: hf}`.",
            )


def metric_problem(leaf: Leaf, metric: str) -> UsageError | None:
    """Why `metric` cannot be gated, as far as the task's configuration tells; None where nothing speaks against it."""
    if "class" in leaf.config:
        return None
    declared = _declared(leaf.config)
    filters = _filters(leaf.config)
    base = metric.partition(",")[0]
    aggregation = declared.get(base)
    if aggregation is not None and aggregation not in PER_ITEM:
        what = "with a function of its own" if aggregation.startswith("/") else f"with {aggregation}"
        return UsageError(
            f"gate.metrics.{leaf.name}.{metric}: lm-eval computes it from all items together ({what}), so there is no "
            "score of an item that a gate could compare",
            remedy="It is in the evaluation's summary. Gate a metric that is a mean over items, such as acc.",
        )
    known = [metric_name(each, one) for each, how in declared.items() if how in PER_ITEM for one in filters]
    known += ANSWER_METRICS if leaf.config.get("output_type", "generate_until") == "generate_until" else ()
    # A function may return metrics of any name, and so may a metric that is one.
    open_ended = "process_results" in leaf.config or any(
        how == "" or name.startswith("/") for name, how in declared.items()
    )
    if metric in known or open_ended:
        return None
    return UsageError(
        f"gate.metrics.{leaf.name}.{metric}: the lm-eval task {leaf.name!r} has no such metric",
        remedy=did_you_mean(metric, known),
    )


def metrics_of_every_item(leaf: Leaf) -> list[str]:
    """Metrics that each item of the task has, as far as its configuration tells."""
    if "class" in leaf.config or "process_results" in leaf.config:
        return []
    return [
        metric_name(metric, name)
        for metric, how in _declared(leaf.config).items()
        if how == "mean"
        for name in _filters(leaf.config)
    ]


def metric_name(metric: str, filter_name: str) -> str:
    """A metric's name in records: lm-eval's own (`exact_match,strict-match`), without the filter that is none."""
    return metric if filter_name == "none" else f"{metric},{filter_name}"


def _filters(config: Mapping[str, Any]) -> list[str]:
    return [str(one.get("name")) for one in config.get("filter_list") or ()] or ["none"]


def _declared(config: Mapping[str, Any]) -> dict[str, str]:
    """The configuration's metrics with the name of their aggregation; "" where that is not known."""
    import lm_eval.api.metrics  # noqa: F401 - fills the registry
    from lm_eval.api.registry import AGGREGATION_REGISTRY, DEFAULT_METRIC_REGISTRY, get_metric_aggregation

    names = {AGGREGATION_REGISTRY.get(name): name for name in AGGREGATION_REGISTRY}

    def usual(metric: str) -> str:
        return str(names.get(get_metric_aggregation(metric), ""))

    listed = config.get("metric_list")
    if listed is None:
        return {name: usual(name) for name in DEFAULT_METRIC_REGISTRY[config.get("output_type", "generate_until")]}
    return {str(one["metric"]): str(one.get("aggregation") or usual(str(one["metric"]))) for one in listed}
