"""A stand-in for the Hugging Face hub that takes uploads over HTTP, as far as the real client asks: one repository with
branches, tags, commits and a store of large files. It can store a file wrongly, break connections and refuse tokens."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_standInForATokenThatCanWrite0123456789"
LARGE = (".safetensors", ".bin")
"""What .gitattributes gives to LFS."""
PAGE = 5
"""Entries on one page of a listing, so that the client has to ask for the next."""
RETRIES = 5
"""How often the client sends a PUT again after a broken connection."""


@dataclass(frozen=True)
class Stored:
    """One file in a commit."""

    data: bytes
    """What comes back when it is asked for."""
    oid: str = ""
    """sha256 of a large file, as its pointer in the commit says it: what the client told the hub."""

    @property
    def git_oid(self) -> str:
        """git's hash of a small file."""
        return hashlib.sha1(b"blob %d\0%b" % (len(self.data), self.data), usedforsecurity=False).hexdigest()


@dataclass
class Hub:
    """State of the repository, and the faults that it is to show."""

    repo: str
    commits: dict[str, dict[str, Stored]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    lfs: dict[str, bytes] = field(default_factory=dict)
    private: bool | None = None
    """None until the repository is created."""
    asked: list[str] = field(default_factory=list)
    """METHOD and path of every request."""
    tokens: set[str] = field(default_factory=set)
    """Every Authorization header to the hub itself ("" for none)."""
    damaged: str = ""
    """Name of a file that is stored wrongly."""
    breaks: str = ""
    """Regular expression of METHOD and path: the connection is cut after half of the request's body, ..."""
    broken: int = 0
    """... as often as this."""
    fails: str = ""
    """Regular expression of METHOD and path: answered as by a server that is down for maintenance."""
    mute: str = ""
    """Regular expression of METHOD and path: it is done, and then the connection is cut instead of an answer (once)."""
    url: str = ""
    lock: threading.RLock = field(default_factory=threading.RLock)

    def commit(self, files: dict[str, Stored]) -> str:
        """A new commit's id."""
        oid = hashlib.sha1(b"commit %d" % len(self.commits), usedforsecurity=False).hexdigest()
        self.commits[oid] = files
        return oid

    def resolve(self, revision: str) -> str:
        """The commit of a branch, a tag or itself."""
        found = self.branches.get(revision) or self.tags.get(revision) or revision
        if found not in self.commits:
            raise HubError(404, "Invalid rev id", code="RevisionNotFound")
        return found

    def heal(self) -> None:
        """Let the store of large files hold what it was given."""
        for commit in self.commits.values():
            commit.update({n: Stored(self.lfs[s.oid], s.oid) for n, s in commit.items() if s.oid})

    def files(self, revision: str) -> dict[str, bytes]:
        """Name -> bytes, of a revision."""
        return {name: stored.data for name, stored in self.commits[self.resolve(revision)].items()}


class HubError(Exception):
    """An answer that is an error of the hub's."""

    def __init__(self, status: int, message: str, *, code: str = "", **more: str) -> None:
        super().__init__(message)
        self.answer = Answer(status, json.dumps({"error": message, **more}).encode(), {"X-Error-Message": message})
        if code:
            self.answer.headers["X-Error-Code"] = code


@dataclass
class Answer:
    """What goes back."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def said(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    """JSON."""
    return Answer(status, json.dumps(value).encode(), headers or {})


@contextmanager
def hub_server(repo: str) -> Iterator[Hub]:
    """The hub, listening on this machine as long as the block lasts."""
    hub = Hub(repo)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # One packet an answer: headers and body in two would wait for the client's delayed acknowledgement.
        wbufsize = -1
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            what = f"{self.command} {path}"
            size = int(self.headers.get("Content-Length") or 0)
            with hub.lock:
                hub.asked.append(what)
                cut = hub.broken > 0 and re.search(hub.breaks, what) is not None
                hub.broken -= cut
            body = self.rfile.read(size // 2 if cut else size)
            if cut:
                self.cut()
                return
            with hub.lock:
                try:
                    if hub.fails and re.search(hub.fails, what):
                        raise HubError(503, "Service Temporarily Unavailable")
                    answer = answer_to(hub, self, body)
                except HubError as refusal:
                    answer = refusal.answer
                if hub.mute and re.search(hub.mute, what):
                    hub.mute = ""
                    self.cut()
                    return
            self.send_response(answer.status)
            for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)

        do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

        def cut(self) -> None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def answer_to(hub: Hub, request: http.server.BaseHTTPRequestHandler, body: bytes) -> Answer:
    """What the hub says; paths are split while they are quoted, because a branch's name may hold a slash."""
    url = urlsplit(request.path)
    parts = [unquote(part) for part in url.path.split("/")[1:]]
    if parts[0] == "lfs":  # an address that is signed, not one of the hub's own: it gets no token
        return _store(hub, parts[1], body)
    hub.tokens.add(request.headers.get("Authorization", ""))
    if request.headers.get("Authorization") != f"Bearer {TOKEN}":
        raise HubError(401, "Invalid username or password.")
    if parts == ["api", "repos", "create"]:
        return _create(hub, json.loads(body))
    if parts == ["api", "validate-yaml"]:
        return said({"errors": [], "warnings": []})
    owner, name = hub.repo.split("/")
    if hub.private is None or (
        parts[:4][-2:] != [owner, name] and parts[:2] not in ([owner, name], [owner, f"{name}.git"])
    ):
        raise HubError(404, "Repository not found", code="RepoNotFound")
    if parts[0] != "api":
        if parts[2:] == ["info", "lfs", "objects", "batch"]:
            return _batch(hub, json.loads(body))
        return _resolve(hub, parts[3], "/".join(parts[4:]))
    what, revision = parts[4], parts[5] if len(parts) > 5 else "main"
    match request.command, what:
        case "GET", "refs":
            return _refs(hub)
        case "GET", "revision":
            return said({"id": hub.repo, "sha": hub.resolve(revision), "private": hub.private})
        case "GET", "tree":
            return _tree(hub, hub.resolve(revision), url.path, int(parse_qs(url.query).get("cursor", ["0"])[0]))
        case "POST", "paths-info":
            there, wanted = hub.commits[hub.resolve(revision)], parse_qs(body.decode())["paths"]
            return said([_entry(path, there[path]) for path in wanted if path in there])
        case "POST", "preupload":
            return _preupload(hub, hub.commits[hub.resolve(revision)], json.loads(body))
        case "POST", "commit":
            return _commit(hub, revision, [json.loads(line) for line in body.splitlines()])
        case "POST", "branch":
            if revision in hub.branches:
                raise HubError(409, "Reference already exists")
            hub.branches[revision] = hub.resolve(json.loads(body).get("startingPoint", "main"))
            return said({}, 201)
        case "DELETE", "branch":
            if hub.branches.pop(revision, None) is None:
                raise HubError(404, "Reference does not exist", code="RevisionNotFound")
            return said({})
        case "POST", "tag":
            tag = json.loads(body)["tag"]
            if tag in hub.tags:
                raise HubError(409, "Tag reference exists already")
            hub.tags[tag] = hub.resolve(revision)
            return said({}, 201)
    raise HubError(404, f"this stand-in has no {request.command} {what}")


def _create(hub: Hub, wanted: dict[str, object]) -> Answer:
    name = f"{wanted['organization']}/{wanted['name']}"
    if hub.private is not None:
        raise HubError(409, "You already created this model repo", url=f"{hub.url}/{name}")
    if name != hub.repo:
        raise HubError(
            403, f"You don't have the rights to create a model under the namespace {wanted['organization']!r}"
        )
    hub.private = wanted.get("private") is True or wanted.get("visibility") == "private"
    attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE)
    hub.branches["main"] = hub.commit({".gitattributes": Stored(attributes.encode())})
    return said({"url": f"{hub.url}/{name}", "name": name, "id": "0"})


def _refs(hub: Hub) -> Answer:
    def listed(known: dict[str, str], kind: str) -> list[dict[str, str]]:
        return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": c} for n, c in known.items()]

    return said({"branches": listed(hub.branches, "heads"), "tags": listed(hub.tags, "tags"), "converts": []})


def _entry(path: str, stored: Stored) -> dict[str, object]:
    value: dict[str, object] = {"type": "file", "path": path, "size": len(stored.data), "oid": stored.git_oid}
    if stored.oid:
        value["lfs"] = {"oid": stored.oid, "size": len(stored.data), "pointerSize": 134}
    return value


def _tree(hub: Hub, commit: str, path: str, start: int) -> Answer:
    files = sorted(hub.commits[commit].items())
    headers = {}
    if start + PAGE < len(files):
        headers["Link"] = f'<{hub.url}{path}?recursive=true&cursor={start + PAGE}>; rel="next"'
    return said([_entry(*file) for file in files[start : start + PAGE]], headers=headers)


def _preupload(hub: Hub, there: dict[str, Stored], wanted: dict[str, list[dict[str, str]]]) -> Answer:
    def mode(path: str) -> dict[str, object]:
        has = there.get(path)
        oid = None if has is None else has.oid or has.git_oid
        large = path.endswith(LARGE)
        return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}

    return said({"files": [mode(file["path"]) for file in wanted["files"]]})


def _batch(hub: Hub, wanted: dict[str, list[dict[str, object]]]) -> Answer:
    objects = []
    for item in wanted["objects"]:
        href = f"{hub.url}/lfs/{item['oid']}"
        there = item["oid"] in hub.lfs
        objects.append(item if there else {**item, "actions": {"upload": {"href": href, "header": {}}}})
    return said({"transfer": "basic", "objects": objects})


def _store(hub: Hub, oid: str, body: bytes) -> Answer:
    if hashlib.sha256(body).hexdigest() != oid:
        raise HubError(400, "The Content-SHA256 you specified did not match what we received")
    hub.lfs[oid] = body
    return Answer()


def _commit(hub: Hub, branch: str, lines: list[dict[str, Any]]) -> Answer:
    head, *operations = lines
    if head["value"].get("parentCommit", hub.branches[branch]) != hub.branches[branch]:
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    files = dict(hub.commits[hub.branches[branch]])
    for line in operations:
        path = line["value"]["path"]
        match line["key"]:
            case "file":
                data = base64.b64decode(line["value"]["content"])
            case "lfsFile":
                if line["value"]["oid"] not in hub.lfs:
                    raise HubError(400, f"LFS pointer pointed to a file that does not exist: {path}")
                data = hub.lfs[line["value"]["oid"]]
            case "deletedFile":
                del files[path]
                continue
            case other:
                raise HubError(400, f"no such operation: {other}")
        files[path] = Stored(damaged(data) if path == hub.damaged else data, line["value"].get("oid", ""))
    hub.branches[branch] = hub.commit(files)
    url = f"{hub.url}/{hub.repo}/commit/{hub.branches[branch]}"
    return said({"success": True, "commitUrl": url, "commitOid": hub.branches[branch], "hookOutput": ""})


def damaged(data: bytes) -> bytes:
    """One bit of it changed."""
    return data[:-1] + bytes([data[-1] ^ 1])


def _resolve(hub: Hub, revision: str, path: str) -> Answer:
    commit = hub.resolve(revision)
    stored = hub.commits[commit].get(path)
    if stored is None:
        refused = HubError(404, "Entry not found", code="EntryNotFound")
        refused.answer.headers["X-Repo-Commit"] = commit
        raise refused
    headers = {"X-Repo-Commit": commit, "ETag": f'"{stored.git_oid}"'}
    if stored.oid:
        headers |= {"X-Linked-Etag": f'"{stored.oid}"', "X-Linked-Size": str(len(stored.data))}
    return Answer(200, stored.data, headers)
