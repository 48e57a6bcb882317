"""A release on the Hugging Face hub: one tag a version, and the main branch for the newest.

A branch of the version's own is filled with one commit and read back; then the tag is made, and last the main branch
gets the same files in one commit (large files are not sent twice: the hub has them).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqtool.errors import InfrastructureError, UsageError
from sqtool.progress import Progress, Task
from sqtool.release.manifest import CHUNK, MANIFEST, Entry

if TYPE_CHECKING:
    from huggingface_hub import HfApi

KEPT = (".gitattributes",)
"""Files of the repository's own, which no release brings and none removes."""
MAIN = "main"
BRANCH = "upload/{version}"
ALONE = 10 * 2**20
"""Bytes from which a file is sent by itself before the commit, so that progress can be told. The hub keeps such files
in its store of large files (LFS, Xet), whatever they are."""
TIMEOUT = 60.0
"""Seconds that the hub may send nothing while a file is read back."""


def to_hub(repo: str, place: Path, entries: dict[str, Entry], progress: Progress, *, private: bool) -> str:
    """Send a release to the repository `owner/name` of the hub that HF_ENDPOINT names; the URL of its tag."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    api = HfApi()
    with _quiet():
        try:
            api.create_repo(repo, private=private, repo_type="model", exist_ok=True)
        except HFValidationError as error:
            raise UsageError(f"release.to: {error}") from None
        _publish(api, repo, place, entries, progress)
    return f"{api.endpoint}/{repo}/tree/{place.name}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the client's own bars and remarks, which would be drawn over sqtool's."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    shown, verbosity = not are_progress_bars_disabled(), logging.get_verbosity()
    disable_progress_bars()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            enable_progress_bars()


def _publish(api: HfApi, repo: str, place: Path, entries: dict[str, Entry], progress: Progress) -> None:
    version = place.name
    refs = api.list_repo_refs(repo)
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
        _read_back(api, repo, commit, entries, progress, again=True)
        api.delete_branch(repo, branch=BRANCH.format(version=version))


def _unfinished(refs: Any, version: str) -> bool:
    return any(branch.name == BRANCH.format(version=version) for branch in refs.branches)


def _has(api: HfApi, repo: str, revision: str, wanted: Entry) -> bool:
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        return _read(api, repo, MANIFEST, revision) == wanted
    except RemoteEntryNotFoundError:
        return False


def _commit(api: HfApi, repo: str, revision: str, place: Path, entries: dict[str, Entry], progress: Progress) -> str:
    """One commit that leaves exactly the release's files; its id. Fails when somebody else committed meanwhile."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    parent = api.repo_info(repo, revision=revision).sha
    there = api.list_repo_files(repo, revision=parent)
    added = [CommitOperationAdd(name, str(place / name)) for name in sorted(entries)]
    removed = [CommitOperationDelete(name) for name in sorted(there) if name not in entries and name not in KEPT]
    total = sum(entry.size for entry in entries.values())
    with progress.task(f"release: upload to {repo} ({revision})", total=total) as task:
        for addition in added:
            size = entries[addition.path_in_repo].size
            if size >= ALONE:
                api.preupload_lfs_files(repo, [addition], revision=revision, free_memory=False)
                task.advance(size)
        done = api.create_commit(
            repo,
            [*added, *removed],
            commit_message=f"{place.parent.name} {place.name}",
            revision=revision,
            parent_commit=parent,
        )
        task.advance(sum(entry.size for entry in entries.values() if entry.size < ALONE))
    return str(done.oid)


def _read_back(
    api: HfApi, repo: str, revision: str, entries: dict[str, Entry], progress: Progress, *, again: bool = False
) -> None:
    """Compare the bytes of every file that the hub has at `revision` with what was sent.

    The sha256 that the hub lists for a large file is the one that the client told it, so that alone proves nothing; it
    is enough for the same file in a further commit (`again`), where it says that this is the file read before.
    """
    found = {info.path: info for info in api.get_paths_info(repo, sorted(entries), revision=revision)}
    with progress.task("release: read back", total=sum(e.size for e in entries.values())) as task:
        for name, entry in entries.items():
            info = found.get(name)
            lfs = getattr(info, "lfs", None)
            if info is None:
                have = Entry("nothing", 0)
            elif lfs is not None and (again or lfs.sha256 != entry.sha256):
                have = Entry(str(lfs.sha256), int(lfs.size))
                task.advance(entry.size)
            else:
                have = _read(api, repo, name, revision, task)
            if have != entry:
                raise InfrastructureError(
                    f"{name} in {repo} at {revision} is not what was sent: sha256 {have.sha256}, {have.size} bytes, "
                    f"instead of {entry.sha256}, {entry.size} bytes",
                    remedy="Run the same command again; the version is tagged only when everything matches.",
                )


def _read(api: HfApi, repo: str, name: str, revision: str, task: Task | None = None) -> Entry:
    """A file's sha256 and size by its bytes, past every cache and without a copy on this disk."""
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    url = hf_hub_url(repo, name, revision=revision, endpoint=api.endpoint)
    # Compressed on the way, a file would have another length than it has.
    headers = {**build_hf_headers(token=api.token), "Accept-Encoding": "identity"}
    total, size = hashlib.sha256(), 0
    with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT) as response:
        if response.is_error:
            response.read()
        hf_raise_for_status(response)
        for chunk in response.iter_bytes(CHUNK):
            total.update(chunk)
            size += len(chunk)
            if task is not None:
                task.advance(len(chunk))
    return Entry(total.hexdigest(), size)
