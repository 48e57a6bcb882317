"""The `release` section of a recipe."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from sqtool.spec import Spec

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
LATEST = "latest"


class ReleaseSpec(Spec):
    """Where a passing checkpoint is published: `<to>/<name>/<version>/`, with `<to>/<name>/latest` pointing to it.

    The default version is the day and a digest of checkpoint, recipe and verdict (`2026-03-01-1f2e3d4c`): two machines
    never give one version to different bytes, and publishing the same bytes again finds the release that exists. A
    version named in the recipe is never overwritten with other content.
    """

    name: str = Field(
        default="",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$",
        max_length=80,
        description="Folder of all versions; default: the recipe's name.",
    )
    version: str | None = Field(
        default=None,
        pattern=NAME,
        max_length=80,
        description="Folder of this release; default: the day and a digest of what is published.",
    )
    to: Path = Field(
        default=Path("artifacts/releases"),
        description="Folder of all releases, absolute or relative to the project root.",
    )

    @field_validator("version")
    @classmethod
    def _not_the_pointer(cls, value: str | None) -> str | None:
        if value == LATEST:
            raise ValueError("`latest` is the name of the pointer to the newest version; choose another")
        return value
