"""Loading lm-eval tasks with their data, checked before anything expensive starts."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.harness.catalogue import Catalogue, Leaf, read
from evals.harness.code import sandbox_templates
from evals.harness.quiet import quiet
from evals.harness.spec import LmEvalSpec
from evals.spec import EvaluateSpec
from sqtool.errors import DataError, UsageError
from sqtool.files import sha256_text

FEWSHOT_SEED = 1234
"""lm-eval's default: with another one the same task would have other examples than `lm_eval` gives it."""
LONGEST_FIELD = 80


@dataclass(frozen=True)
class Loaded:
    """A task with its data, `size` items. `task` is lm-eval's; `path` is its YAML file, or its name without one."""

    leaf: Leaf
    task: Any
    size: int

    @property
    def name(self) -> str:
        return self.leaf.name

    @property
    def path(self) -> Path:
        return self.leaf.path or Path(self.leaf.name)

    def docs(self, limit: int | None) -> list[dict[str, Any]]:
        """The first `limit` items (all for None), as lm-eval takes them."""
        docs = self.task.eval_docs
        return [docs[at] for at in range(self.count(limit))]

    def count(self, limit: int | None) -> int:
        """How many these are."""
        return self.size if limit is None else min(limit, self.size)


def limit_of(spec: EvaluateSpec) -> int | None:
    """Items of each lm-eval task; None for all. The smaller limit counts where there are two (as in a pilot)."""
    assert spec.lm_eval is not None
    given = [limit for limit in (spec.limit, spec.lm_eval.limit) if limit is not None]
    return min(given, default=None)


def load(spec: LmEvalSpec, root: Path) -> list[Loaded]:
    """Every leaf task of the recipe with its data, in the recipe's order.

    Raises as `catalogue.read` does, `DataError` for a task that does not load or whose data are not on this machine,
    `UsageError` for one that needs what sqtool does not do.
    """
    catalogue = read(spec, root)
    sandbox_templates()
    found: dict[str, Loaded] = {}
    for name in catalogue.names:
        for leaf_name, task in _load(catalogue, name, root).items():
            if leaf_name in found:
                raise UsageError(
                    f"evaluate.lm_eval.tasks: {leaf_name!r} is named twice, alone or in groups",
                    remedy="Leave one of them out.",
                )
            leaf = catalogue.leaves.get(leaf_name) or Leaf(leaf_name, task.dump_config(), None)
            found[leaf_name] = Loaded(leaf, task, len(task.eval_docs))
    for loaded in found.values():
        _check(spec, loaded)
        _configure(spec, loaded.task)
    return list(found.values())


def _load(catalogue: Catalogue, name: str, root: Path) -> Mapping[str, Any]:
    try:
        # Like every path in a recipe, those of a task's data are relative to the project root.
        with quiet(), contextlib.chdir(root):
            tasks: Mapping[str, Any] = catalogue.manager.load([name])["tasks"]
            return tasks
    except Exception as error:  # a task's YAML and code are the user's and may raise anything
        raise _failure(catalogue, name, error) from error


def _failure(catalogue: Catalogue, name: str, error: Exception) -> DataError:
    leaf = catalogue.leaves.get(Path(name).stem if name.endswith(".yaml") else name)
    where = (leaf.path if leaf is not None else None) or f"lm-eval task {name}"
    text = " ".join(str(error).split()) or "no message"
    if isinstance(error, ConnectionError | FileNotFoundError) or "offline" in text.lower():
        return DataError(
            where,
            f"the data of the lm-eval task are not on this machine ({text})",
            field="dataset_path",
            remedy="Fetch them once where there is a network, with `python -c 'import datasets; "
            "datasets.load_dataset(PATH, NAME)'` and the same HF_HOME; or name local files in "
            "dataset_kwargs.data_files, relative to the project root.",
        )
    return DataError(
        where,
        f"lm-eval cannot load the task ({type(error).__name__}: {text})",
        remedy=f"`lm_eval validate --tasks {name}` checks a task's file.",
    )


def _check(spec: LmEvalSpec, loaded: Loaded) -> None:
    task, path = loaded.task, loaded.path
    if getattr(task, "MULTIMODAL", False):
        raise DataError(path, "the lm-eval task asks about images or sound, and sqtool asks with text only")
    if getattr(task, "UNSAFE_CODE", False) and not spec.confirm_run_unsafe_code:
        raise DataError(
            path,
            "the lm-eval task runs what the model writes as a program on this machine",
            remedy="Where that is safe, set `confirm_run_unsafe_code: true` in evaluate.lm_eval.",
        )
    if loaded.size == 0:
        raise DataError(path, "the lm-eval task has no items")


def _configure(spec: LmEvalSpec, task: Any) -> None:
    """What `lm_eval.simple_evaluate` does with these settings, which takes no loaded tasks of several names."""
    if spec.gen_kwargs and task.get_config("output_type") == "generate_until":
        task.set_config(key="generation_kwargs", value=dict(spec.gen_kwargs), update=True)
    fixed = task.get_config("num_fewshot")
    if spec.num_fewshot is not None and fixed != 0:  # a 0 in the task means that it has no examples
        task.set_config(key="num_fewshot", value=spec.num_fewshot)
    elif fixed is None:
        task.set_config(key="num_fewshot", value=0)


def item_id(number: int, doc: Any) -> str:
    """An item's id: its place in the data, and its content, so that other data are never paired with these."""
    return f"{number:05d}-{doc_digest(doc)[:12]}"


def doc_digest(doc: Any) -> str:
    """Hex sha256 of an item's data."""
    return sha256_text(json.dumps(doc, sort_keys=True, ensure_ascii=False, default=str))


def slice_fields(doc: Any) -> dict[str, str | int | float | bool]:
    """Of an item's data, what it can be sliced by: numbers and short texts."""
    if not isinstance(doc, Mapping):
        return {}
    return {
        str(key): value
        for key, value in doc.items()
        if isinstance(value, int | float) or (isinstance(value, str) and len(value) <= LONGEST_FIELD)
    }
