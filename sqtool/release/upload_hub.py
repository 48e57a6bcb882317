"""A release on the Hugging Face hub: one tag a version, and the main branch for the newest.

A branch of the version's own is filled with one commit and read back; then the tag is made, and last the main branch
gets the same files in one commit (large files are not sent twice: the hub has them).
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqtool.errors import InfrastructureError, UsageError
from sqtool.progress import Progress
from sqtool.release.manifest import MANIFEST, Entry

if TYPE_CHECKING:
    from huggingface_hub import HfApi

KEPT = (".gitattributes",)
"""Files of the repository's own, which no release brings and none removes."""
MAIN = "main"
BRANCH = "upload/{version}"


def to_hub(
    repo: str, place: Path, entries: dict[str, Entry], progress: Progress, *, private: bool, api: HfApi | None = None
) -> str:
    """Send a release to the repository `owner/name`; the URL of its tag."""
    if api is None:
        from huggingface_hub import HfApi as Api

        api = Api()
    version = place.name
    api.create_repo(repo, private=private, repo_type="model", exist_ok=True)
    refs = api.list_repo_refs(repo)
    url = f"https://huggingface.co/{repo}/tree/{version}"
    tagged = any(tag.name == version for tag in refs.tags)
    if tagged:
        if not _has(api, repo, version, entries[MANIFEST]):
            raise UsageError(
                f"{repo} has a version {version} with other content; a release is never overwritten",
                remedy="Choose another `release.version`, or leave it out for one made from day and content.",
            )
        _read_back(api, repo, version, entries, progress)
    else:
        branch = BRANCH.format(version=version)
        api.create_branch(repo, branch=branch, exist_ok=True)
        commit = _commit(api, repo, branch, place, entries, progress)
        _read_back(api, repo, commit, entries, progress)
        api.create_tag(repo, tag=version, revision=commit, exist_ok=False)
    # A run that found its tag was interrupted before main followed, or ran before: then main may be ahead already.
    if not tagged or _unfinished(refs, version):
        commit = _commit(api, repo, MAIN, place, entries, progress)
        _read_back(api, repo, commit, entries, progress)
        api.delete_branch(repo, branch=BRANCH.format(version=version))
    return url


def _unfinished(refs: Any, version: str) -> bool:
    return any(branch.name == BRANCH.format(version=version) for branch in refs.branches)


def _has(api: HfApi, repo: str, revision: str, wanted: Entry) -> bool:
    from huggingface_hub.errors import EntryNotFoundError

    with tempfile.TemporaryDirectory() as folder:
        try:
            return _download(api, repo, MANIFEST, revision, folder) == wanted
        except EntryNotFoundError:
            return False


def _commit(api: HfApi, repo: str, revision: str, place: Path, entries: dict[str, Entry], progress: Progress) -> str:
    """One commit that leaves exactly the release's files; its id. Fails when somebody else committed meanwhile."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    parent = api.repo_info(repo, revision=revision).sha
    there = api.list_repo_files(repo, revision=parent)
    operations: list[Any] = [CommitOperationAdd(name, str(place / name)) for name in sorted(entries)]
    operations += [CommitOperationDelete(name) for name in sorted(there) if name not in entries and name not in KEPT]
    with progress.task(f"release: upload to {repo} ({revision})"):
        done = api.create_commit(
            repo,
            operations,
            commit_message=f"{place.parent.name} {place.name}",
            revision=revision,
            parent_commit=parent,
        )
    return str(done.oid)


def _read_back(api: HfApi, repo: str, revision: str, entries: dict[str, Entry], progress: Progress) -> None:
    """Compare every file with what the hub has at `revision`: the hub's own sha256 of large files, and the bytes of the
    small ones, for which it keeps no sha256."""
    found = {info.path: info for info in api.get_paths_info(repo, sorted(entries), revision=revision)}
    with progress.task("release: read back", total=len(entries)) as task, tempfile.TemporaryDirectory() as folder:
        for name, entry in entries.items():
            info = found.get(name)
            lfs = getattr(info, "lfs", None)
            if info is None:
                have = Entry("nothing", 0)
            elif lfs is not None:
                have = Entry(str(lfs.sha256), int(lfs.size))
            else:
                have = _download(api, repo, name, revision, folder)
            if have != entry:
                raise InfrastructureError(
                    f"{name} in {repo} at {revision} is not what was sent: sha256 {have.sha256}, {have.size} bytes, "
                    f"instead of {entry.sha256}, {entry.size} bytes",
                    remedy="Run the same command again; the version is tagged only when everything matches.",
                )
            task.advance(1)


def _download(api: HfApi, repo: str, name: str, revision: str, folder: str) -> Entry:
    path = Path(str(api.hf_hub_download(repo, name, revision=revision, local_dir=folder, force_download=True)))
    data = path.read_bytes()
    path.unlink()
    return Entry(hashlib.sha256(data).hexdigest(), len(data))
