"""A contract double of the Hugging Face hub: branches, tags and commits in memory, called as HfApi is.

Every call is bound to the real method's signature first, so that an argument that HfApi does not have fails here too;
answers are made of huggingface_hub's own classes.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RemoteEntryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import GitRefInfo, GitRefs, RepoFile

LFS_SUFFIX = ".safetensors"


class FakeHub:
    """One repository."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, bytes]] = {"0" * 40: {".gitattributes": b"*.safetensors filter=lfs\n"}}
        self.branches = {"main": "0" * 40}
        self.tags: dict[str, str] = {}
        self.private: bool | None = None
        self.damaged = ""
        """Name of a file that the hub stores wrongly."""
        self.calls: list[str] = []
        self.fails_at = ""

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        real = inspect.getattr_static(HfApi, name, None)
        if name.startswith("_") or real is None or not callable(found):
            return found

        def bound(*args: Any, **kwargs: Any) -> Any:
            inspect.signature(getattr(HfApi, name)).bind(self, *args, **kwargs)
            self.calls.append(name)
            if self.fails_at == name:
                raise ConnectionError("the hub does not answer")
            return found(*args, **kwargs)

        return bound

    def _resolve(self, revision: str | None) -> str:
        for known in (self.branches, self.tags):
            if (revision or "main") in known:
                return known[revision or "main"]
        if revision in self.commits:
            return str(revision)
        raise RevisionNotFoundError(f"no revision {revision}", response=_response())

    def create_repo(self, repo_id: str, *, private: bool, repo_type: str, exist_ok: bool) -> None:
        assert exist_ok
        self.private = private if self.private is None else self.private

    def list_repo_refs(self, repo_id: str) -> GitRefs:
        def refs(known: dict[str, str], kind: str) -> list[GitRefInfo]:
            return [GitRefInfo(name=n, ref=f"refs/{kind}/{n}", target_commit=c) for n, c in known.items()]

        return GitRefs(branches=refs(self.branches, "heads"), converts=[], tags=refs(self.tags, "tags"))

    def repo_info(self, repo_id: str, *, revision: str) -> SimpleNamespace:
        return SimpleNamespace(sha=self._resolve(revision))

    def list_repo_files(self, repo_id: str, *, revision: str) -> list[str]:
        return sorted(self.commits[self._resolve(revision)])

    def create_branch(self, repo_id: str, *, branch: str, exist_ok: bool) -> None:
        if branch not in self.branches:
            self.branches[branch] = self.branches["main"]

    def delete_branch(self, repo_id: str, *, branch: str) -> None:
        del self.branches[branch]

    def create_tag(self, repo_id: str, *, tag: str, revision: str, exist_ok: bool) -> None:
        assert tag not in self.tags
        self.tags[tag] = self._resolve(revision)

    def create_commit(
        self,
        repo_id: str,
        operations: Iterable[CommitOperationAdd | CommitOperationDelete],
        *,
        commit_message: str,
        revision: str,
        parent_commit: str,
    ) -> SimpleNamespace:
        assert self.branches[revision] == parent_commit, "somebody committed meanwhile"
        files = dict(self.commits[parent_commit])
        for operation in operations:
            if isinstance(operation, CommitOperationDelete):
                del files[operation.path_in_repo]
                continue
            data = Path(str(operation.path_or_fileobj)).read_bytes()
            files[operation.path_in_repo] = data + b"?" if operation.path_in_repo == self.damaged else data
        oid = hashlib.sha1(f"{len(self.commits)}".encode(), usedforsecurity=False).hexdigest()
        self.commits[oid] = files
        self.branches[revision] = oid
        return SimpleNamespace(oid=oid)

    def get_paths_info(self, repo_id: str, paths: list[str], *, revision: str) -> list[RepoFile]:
        files = self.commits[self._resolve(revision)]
        found = []
        for path in paths:
            if path not in files:
                continue
            data = files[path]
            value: dict[str, Any] = {"path": path, "size": len(data), "oid": "0" * 40, "type": "file"}
            if path.endswith(LFS_SUFFIX):
                value["lfs"] = {"size": len(data), "oid": hashlib.sha256(data).hexdigest(), "pointerSize": 134}
            found.append(RepoFile(**value))
        return found

    def hf_hub_download(
        self, repo_id: str, filename: str, *, revision: str, local_dir: str, force_download: bool
    ) -> str:
        assert force_download, "a cached file is not read back"
        files = self.commits[self._resolve(revision)]
        if filename not in files:
            raise RemoteEntryNotFoundError(f"no {filename}", response=_response())
        path = Path(local_dir) / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[filename])
        return str(path)


def _response() -> Any:
    import httpx

    return httpx.Response(404, request=httpx.Request("GET", "https://huggingface.co"))
