"""A job: a recipe bound to this machine, with every model found. What the pipeline runs and plans."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqtool.errors import InfrastructureError, RecipeError, UsageError, did_you_mean
from sqtool.pipeline.foreign import foreign_code
from sqtool.progress import SILENT, Progress
from sqtool.spec import Spec

if TYPE_CHECKING:
    from sqtool.recipe import LoadedRecipe, Recipe
    from sqtool.speculate.spec import SpeculateSpec

NEVER_FETCHED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.msgpack", "*.h5")
"""Weights in formats that run code when they are read, or that nothing here reads."""
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")


@dataclass(frozen=True)
class Job:
    """Everything that the stages of one run may see."""

    name: str
    root: Path
    model: Path
    """Folder of the bf16 baseline."""
    sections: Mapping[str, Spec]
    seed: int = 0
    draft: Path | None = None
    checkpoint: Path | None = None
    """A finished candidate that the recipe names; then the quantize stage has nothing to do."""
    trust_remote_code: bool = False
    foreign_code: tuple[str, ...] = ()
    """What the recipe asks to run that is neither sqtool's nor installed; allowed at the command line."""
    recipe_path: Path | None = None
    recipe_text: str = ""
    resolved: Mapping[str, Any] = field(default_factory=dict)
    """The recipe with every default, JSON-able."""

    def shown(self, path: Path) -> str:
        """`path` relative to the root where it is below it."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)


def job_of(loaded: LoadedRecipe, progress: Progress = SILENT, *, trust_remote_code: bool = False) -> Job:
    """Bind a recipe to this machine. Models that are hub ids are downloaded unless the hub cache has them.

    A recipe that asks for somebody's code to be run is a `RecipeError` unless `trust_remote_code`: that is for whoever
    starts the run to say, never for a file alone.
    """
    recipe, root, beside = loaded.recipe, loaded.root, loaded.path.resolve().parent
    asked = foreign_code(loaded)
    if asked and not trust_remote_code:
        raise RecipeError(loaded.path, [problem for _, problem in asked])
    model = find_model(
        recipe.model.path or recipe.model.id or "", root, beside, what="model",
        revision=recipe.model.revision, progress=progress,
    )  # fmt: skip
    draft = None
    if recipe.draft is not None:
        draft = find_model(
            recipe.draft.path or recipe.draft.id or "", root, beside, what="draft",
            revision=recipe.draft.revision, progress=progress,
        )  # fmt: skip
    checkpoint = None
    if recipe.quantize.checkpoint is not None:
        given = recipe.quantize.checkpoint
        checkpoint = find_model(given, root, beside, what="quantize.checkpoint", progress=progress)
    return Job(
        name=loaded.name,
        root=root,
        model=model,
        draft=draft,
        checkpoint=checkpoint,
        seed=recipe.seed,
        trust_remote_code=recipe.model.trust_remote_code,
        foreign_code=tuple(what for what, _ in asked),
        sections=_located(recipe, root, beside),
        recipe_path=loaded.path,
        recipe_text=loaded.path.read_text(encoding="utf-8-sig"),
        resolved=recipe.model_dump(mode="json"),
    )


def _located(recipe: Recipe, root: Path, beside: Path) -> dict[str, Spec]:
    """The sections; a file or folder that exists beside the recipe, and not below the root, is named from the root."""
    from sqtool.recipe.model import SECTIONS

    def place(text: str) -> str:
        if Path(text).is_absolute() or (root / text).exists() or not (beside / text).exists():
            return text
        found = (beside / text).resolve()
        return str(found.relative_to(root)) if found.is_relative_to(root) else str(found)

    sections = {name: recipe.section(name) for name in SECTIONS}
    calibrate = recipe.calibrate
    sources = [s if s.path is None else s.model_copy(update={"path": place(s.path)}) for s in calibrate.sources]
    harness = recipe.evaluate.lm_eval
    if harness is not None:
        folder = harness.include_path
        named = tuple(place(task) if task.endswith((".yaml", ".yml")) else task for task in harness.tasks)
        harness = harness.model_copy(update={"tasks": named, "include_path": folder and place(folder)})
    changes: dict[str, dict[str, Any]] = {
        "calibrate": {
            "sources": sources,
            "match": None if calibrate.match is None else place(calibrate.match),
        },
        "evaluate": {"tasks": tuple(place(task) for task in recipe.evaluate.tasks), "lm_eval": harness},
        "speculate": _located_drafting(recipe.speculate, place),
    }
    for name, update in changes.items():
        changed = {key: value for key, value in update.items() if getattr(sections[name], key) != value}
        if changed:
            sections[name] = sections[name].model_copy(update=changed)
    return sections


def _located_drafting(section: SpeculateSpec, place: Callable[[str], str]) -> dict[str, Any]:
    """The traffic and the drafters of the section and of its arms. `tasks` is a word, whatever lies beside."""
    from sqtool.speculate.spec import DraftSpec

    arms = dict(section.arms)
    for name, arm in arms.items():
        if isinstance(arm.speculative, DraftSpec) and arm.speculative.model is not None:
            drafts = arm.speculative.model_copy(update={"model": place(arm.speculative.model)})
            arms[name] = arm.model_copy(update={"speculative": drafts})
    return {
        "traffic": section.traffic if section.traffic == "tasks" else place(section.traffic),
        "model": None if section.model is None else place(section.model),
        "arms": arms,
    }


def find_model(
    given: Path | str,
    root: Path,
    beside: Path | None = None,
    *,
    what: str = "model",
    revision: str | None = None,
    progress: Progress = SILENT,
) -> Path:
    """The folder that a path or hub id means, absolute; `UsageError` when it is neither, with what was looked at."""
    text = str(given)
    path = Path(text).expanduser()
    places = [path] if path.is_absolute() else [base / path for base in (root, beside) if base is not None]
    for place in places:
        if (place / "config.json").is_file():
            return _checked(place.resolve())
    for place in places:
        if place.is_dir():
            raise UsageError(
                f"{what}: {place} is no model folder: it has no config.json",
                remedy="Give a Hugging Face folder: config.json, *.safetensors, the tokenizer's files.",
            )
    # A folder `owner` here means that a path was meant, and mistyped; its name is nobody else's business.
    if HUB_ID.match(text) and not any(place.parent.is_dir() for place in places):
        return _from_hub(text, revision, what, progress)
    raise UsageError(
        f"{what}: no such folder: {places[0]}", remedy=_near(next((p for p in places if p.parent.is_dir()), places[0]))
    )


def _checked(folder: Path) -> Path:
    from quantize.vetting import check_model

    check_model(folder)
    return folder


def _near(path: Path) -> str:
    if "artifacts/reference" in path.as_posix():
        return "The reference models ship with the project's repository; `sqtool doctor` says what is missing."
    siblings = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
    near = did_you_mean(path.name, siblings)
    if near.startswith("did"):
        return near[:1].upper() + near[1:]
    return "Give a folder relative to the project root, an absolute one, or a hub id (owner/name)."


def _from_hub(name: str, revision: str | None, what: str, progress: Progress) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return _checked(Path(snapshot_download(name, revision=revision, local_files_only=True)).resolve())
    except LocalEntryNotFoundError:
        pass
    progress.note(f"{what}: downloading {name}" + (f" at {revision}" if revision else ""))
    try:
        folder = Path(snapshot_download(name, revision=revision, ignore_patterns=list(NEVER_FETCHED))).resolve()
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InfrastructureError(
            f"{what}: {name} is no folder here, and it cannot be downloaded: {first}",
            remedy="Check the name, the network and (for a gated model) HF_TOKEN; or give a local folder.",
        ) from None
    return _checked(folder)
