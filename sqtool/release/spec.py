"""The `release` section of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from sqtool.spec import Spec

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
LATEST = "latest"
RELEASES = "artifacts/releases"
HUB = "hf://"
LOCAL = "file://"


class SignSpec(Spec):
    """How a release is signed: with a private key (`key`), or with a Sigstore identity and no key (`keyless`)."""

    key: str | None = Field(
        default=None,
        min_length=1,
        description="Path of an elliptic-curve private key (PEM), relative to the project root; `sqtool keygen` makes "
        "one. Its password, if it has one, is read from SQTOOL_SIGNING_PASSWORD.",
    )
    keyless: bool = Field(
        default=False,
        description="Sign with the identity of this CI job (OpenID Connect) through Sigstore; needs the network.",
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.key is not None) == self.keyless:
            raise ValueError("give `key: PATH` or `keyless: true`, one of them")
        return self


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
    to: str = Field(
        default=RELEASES,
        min_length=1,
        description="Folder of all releases, absolute or relative to the project root; or a URL that fsspec knows "
        "(s3://bucket/releases); or a Hugging Face repository (hf://owner/name). What goes elsewhere is built in "
        f"{RELEASES} first.",
    )
    private: bool = Field(
        default=True, description="A Hugging Face repository that does not exist yet is made private."
    )
    sign: SignSpec | None = Field(
        default=None,
        description="How to sign; default: the key that SQTOOL_SIGNING_KEY names, else the release is unsigned.",
    )
    evidence: bool = Field(
        default=True,
        description="Put the records that the verdict rests on (prompts, answers, scores) into the release, so that "
        "anybody can compute the verdict again. false: where the test items are not for everybody.",
    )

    @field_validator("version")
    @classmethod
    def _not_the_pointer(cls, value: str | None) -> str | None:
        if value == LATEST:
            raise ValueError("`latest` is the name of the pointer to the newest version; choose another")
        return value

    @field_validator("to", mode="before")
    @classmethod
    def _path_as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @field_validator("to")
    @classmethod
    def _destination(cls, value: str) -> str:
        if value.startswith(HUB):
            owner, _, name = value.removeprefix(HUB).partition("/")
            if not owner or not name or "/" in name:
                raise ValueError(f"a Hugging Face repository is named hf://owner/name, found {value!r}")
        elif "://" in value and "::" in value:
            raise ValueError("chained URLs (a::b://c) cannot be written to; give one URL")
        return value

    @property
    def folder(self) -> Path:
        """The local folder of all releases: the destination, or where what goes elsewhere is built."""
        return Path(RELEASES if self.elsewhere else self.to.removeprefix(LOCAL))

    @property
    def elsewhere(self) -> str | None:
        """The URL that a release is uploaded to; None when its destination is a folder (a `file://` URL is one)."""
        return self.to if "://" in self.to and not self.to.startswith(LOCAL) else None
