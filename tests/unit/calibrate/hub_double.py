"""A stand-in for the Hugging Face hub that serves one data set over HTTP, as far as `datasets` asks: what it is, its
files, and bytes of them. It answers the real client, in a process of its own (the client reads its settings once)."""

from __future__ import annotations

import http.server
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

COMMIT = "a" * 40


@contextmanager
def serving(repo: str, files: Mapping[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """(its address, what it was asked) as long as the block lasts."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            path, _, _ = self.path.partition("?")
            asked.append(f"{self.command} {path}")
            status, headers, body = answer(repo, files, path, self.headers.get("Range"))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body)), "X-Repo-Commit": COMMIT}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def answer(repo: str, files: Mapping[str, bytes], path: str, part: str | None) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body)."""
    api, resolve = f"/api/datasets/{repo}", f"/datasets/{repo}/resolve/[^/]+/"
    if not path.startswith((api, f"/datasets/{repo}/")):
        return 404, {"X-Error-Code": "RepoNotFound"}, b""
    if re.fullmatch(rf"{api}(/revision/[^/]+)?", path):
        return 200, {}, json.dumps({"id": repo, "sha": COMMIT, "siblings": [{"rfilename": f} for f in files]}).encode()
    if re.fullmatch(rf"{api}/tree/[^/]+", path):
        tree = [{"type": "file", "path": f, "size": len(data), "oid": "b" * 40} for f, data in files.items()]
        return 200, {}, json.dumps(tree).encode()
    found = re.fullmatch(resolve + "(.+)", path)
    if found is None or found[1] not in files:
        return 404, {"X-Error-Code": "EntryNotFound"}, b""
    data, headers = files[found[1]], {"ETag": f'"{len(files[found[1]])}"'}
    if (wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", part or "")) is None:
        return 200, headers, data
    first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
    return 206, {**headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"}, data[first : last + 1]
