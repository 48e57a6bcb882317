"""Options that many commands share, and the settings they make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Settings:
    """How a command talks, and where the project is."""

    json: bool = False
    quiet: bool = False
    log_file: Path | None = None
    root: Path | None = None
    trust_remote_code: bool = False

    @property
    def here(self) -> Path:
        """The project root: the one given, else the nearest folder above the working folder that has a
        pyproject.toml, else the working folder."""
        if self.root is not None:
            return self.root.resolve()
        for folder in (Path.cwd(), *Path.cwd().parents):
            if (folder / "pyproject.toml").is_file():
                return folder
        return Path.cwd()


def common(function: F) -> F:
    """--json, --quiet, --log-file and --root, given to the command as its first argument, a `Settings`."""

    @click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout; everything else on stderr.")
    @click.option("-q", "--quiet", is_flag=True, help="No progress; results and errors only.")
    @click.option("--log-file", type=click.Path(dir_okay=False, path_type=Path), help="Also write the log here.")
    @click.option(
        "--root",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Project root, which paths are relative to. Default: the nearest folder with a pyproject.toml.",
    )
    @wraps(function)
    def wrapper(*, as_json: bool, quiet: bool, log_file: Path | None, root: Path | None, **other: Any) -> Any:
        return function(Settings(as_json, quiet, log_file, root), **other)

    return wrapper  # type: ignore[return-value]


def trusting(function: F) -> F:
    """--trust-remote-code, as a part of the `Settings`; goes below `common`."""

    @click.option(
        "--trust-remote-code",
        is_flag=True,
        help="Allow the code of others that the recipe asks for: the model's, a task's, a plug-in's. Read it first.",
    )
    @wraps(function)
    def wrapper(settings: Settings, *, trust_remote_code: bool, **other: Any) -> Any:
        return function(replace(settings, trust_remote_code=trust_remote_code), **other)

    return wrapper  # type: ignore[return-value]


def running(function: F) -> F:
    """--force and --wait, for commands that run stages."""
    force = click.option(
        "--force",
        multiple=True,
        metavar="STAGE",
        help="Run this stage even if its result is there (`all`: every stage). May be repeated.",
    )
    wait = click.option("--wait", is_flag=True, help="Wait while another process holds the run instead of failing.")
    return force(wait(function))


def examples(*lines: str) -> str:
    """The epilog with a command's examples."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
