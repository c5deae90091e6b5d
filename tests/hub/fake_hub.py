"""A Hugging Face hub in this process: the requests that huggingface_hub makes, answered over plain HTTP as the real one does.

``FakeHub`` listens on two ports: the hub (model info, resolve) and the storage host that it redirects weight files to, as the
real hub does with files in git LFS or Xet.  ``faults`` make it misbehave; ``requests`` is what it was asked.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40
_INFO = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?")
_RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
_STORED = re.compile(r"/stored/(?P<file>.+)")
# Closing with a lingering time of 0 sends RST.
_RESET_ON_CLOSE = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
_ERRORS = {
    "gated": (403, "GatedRepo", "Access to this model is restricted"),
    "missing": (401, "RepoNotFound", "Repository not found"),
    "bad token": (401, None, "Invalid credentials in Authorization header"),
    "rate limit": (429, None, "Too many requests"),
    "down": (503, None, "Service unavailable"),
    "forbidden": (403, None, "Token lacks permission"),
}


@dataclass(frozen=True)
class Request:
    """``kind`` is info, resolve or stored (the storage host)."""

    method: str
    kind: str
    file: str
    range: str | None
    authorized: bool


@dataclass
class Faults:
    """What goes wrong.

    info, resolve, stored: a key of _ERRORS that these requests are answered with
    cut: a file name to how many bytes are sent before the connection is closed; used up by the first GET
    cut_error: with which ``stored`` fails after a cut, so that the client gives up
    stall: a file name to how many bytes are sent before nothing more comes
    reset: close cut connections with RST instead of FIN
    not_json: model info is a login page
    ignore_range: the storage host sends everything, always
    anonymous: no X-Repo-Commit
    """

    info: str | None = None
    resolve: str | None = None
    stored: str | None = None
    cut: dict[str, int] = field(default_factory=dict)
    cut_error: str | None = None
    stall: dict[str, int] = field(default_factory=dict)
    reset: bool = False
    not_json: bool = False
    ignore_range: bool = False
    anonymous: bool = False


class FakeHub:
    """One repository, ``org/name``, whose ``main`` is at ``commit``."""

    repo = "org/name"

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = dict(files)
        self.commit = COMMIT
        self.revisions = {"main"}
        self.faults = Faults()
        self.requests: list[Request] = []
        self.stalled = threading.Event()
        self.closed = threading.Event()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
        self.endpoint = f"http://127.0.0.1:{self._servers[0].server_port}"
        self.storage = f"http://localhost:{self._servers[1].server_port}"  # to some versions hosts differ by name only

    def __enter__(self) -> FakeHub:
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """From now on connections are refused."""
        self.closed.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def gets(self, file: str) -> list[Request]:
        """Requests for the content of a file, where it lies."""
        kind = "stored" if is_large(file) else "resolve"
        return [request for request in self.requests if (request.method, request.kind, request.file) == ("GET", kind, file)]

    def asked_for(self) -> set[str]:
        """Every file that was asked for in any way."""
        return {request.file for request in self.requests} - {""}

    def etag(self, file: str) -> str:
        content = self.files[file]
        if is_large(file):
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def info(self) -> dict[str, Any]:
        """As of GET /api/models/org/name/revision/main?blobs=true."""
        return {"id": self.repo, "modelId": self.repo, "sha": self.commit, "siblings": [*map(self._sibling, self.files)]}

    def _sibling(self, file: str) -> dict[str, Any]:
        size = len(self.files[file])
        sibling: dict[str, Any] = {"rfilename": file, "size": size, "blobId": "b" * 40 if is_large(file) else self.etag(file)}
        if is_large(file):
            sibling["lfs"] = {"sha256": self.etag(file), "size": size, "pointerSize": 134}
        return sibling

    def wait_while_stalled(self) -> None:
        self.stalled.set()
        self.closed.wait(30)


def is_large(file: str) -> bool:
    """Whether the hub keeps the file on its storage host."""
    return file.endswith((".safetensors", ".bin", ".pt", ".gguf"))


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two packets

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        if self.hub.closed.is_set():  # a connection that was kept alive
            self.close_connection = True
        elif match := _INFO.fullmatch(path):
            self._note("info", "")
            self._answer_info(match["repo"], unquote(match["revision"] or "main"))
        elif match := _STORED.fullmatch(path):
            self._note("stored", unquote(match["file"]))
            self._answer_stored(unquote(match["file"]))
        elif match := _RESOLVE.fullmatch(path):
            self._note("resolve", unquote(match["file"]))
            self._answer_resolve(match["repo"], unquote(match["revision"]), unquote(match["file"]))
        else:
            self._error(404, None, f"no such page: {path}")

    def _note(self, kind: str, file: str) -> None:
        authorized = "Authorization" in self.headers
        self.hub.requests.append(Request(self.command, kind, file, self.headers.get("Range"), authorized))

    def _answer_info(self, repo: str, revision: str) -> None:
        if self.hub.faults.info:
            self._error(*_ERRORS[self.hub.faults.info])
        elif self.hub.faults.not_json:
            self._send(200, b"<html>Please log in to the hotel's network</html>", {"Content-Type": "text/html"})
        elif self._known(repo, revision):
            self._send(200, json.dumps(self.hub.info()).encode(), {"Content-Type": "application/json"})

    def _answer_resolve(self, repo: str, revision: str, file: str) -> None:
        if self.hub.faults.resolve:
            self._error(*_ERRORS[self.hub.faults.resolve])
        elif not self._known(repo, revision):
            return
        elif file not in self.hub.files:
            self._error(404, "EntryNotFound", "Entry not found")
        elif is_large(file):
            headers = {
                "Location": f"{self.hub.storage}/stored/{file}",
                "X-Linked-Etag": f'"{self.hub.etag(file)}"',
                "X-Linked-Size": str(len(self.hub.files[file])),
                # As the real hub says of most weights; nobody is to follow it.
                "X-Xet-Hash": "e" * 64,
                "X-Xet-Refresh-Route": "/api/models/org/name/xet-read-token/main",
            }
            self._send(302, b"", headers | self._identity())
        else:
            self._send_file(file, {"ETag": f'"{self.hub.etag(file)}"'} | self._identity())

    def _answer_stored(self, file: str) -> None:
        if self.hub.faults.stored:
            self._error(*_ERRORS[self.hub.faults.stored])
        else:
            self._send_file(file, {"ETag": '"of the storage host"'})

    def _identity(self) -> dict[str, str]:
        return {} if self.hub.faults.anonymous else {"X-Repo-Commit": self.hub.commit}

    def _known(self, repo: str, revision: str) -> bool:
        if repo != self.hub.repo:
            self._error(*_ERRORS["missing"])
        elif revision not in self.hub.revisions | {self.hub.commit}:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return True
        return False

    def _send_file(self, file: str, headers: dict[str, str]) -> None:
        content = self.hub.files[file]
        asked = None if self.hub.faults.ignore_range else self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if asked:
            headers |= {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        self._send(206 if asked else 200, content[start:], headers | {"Accept-Ranges": "bytes"}, file)

    def _send(self, status: int, body: bytes, headers: dict[str, str], file: str = "") -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        faults = self.hub.faults
        if file in faults.cut:
            self._cut(body[: faults.cut.pop(file)])
        elif file in faults.stall:
            self.wfile.write(body[: faults.stall[file]])
            self.hub.wait_while_stalled()
        else:
            self.wfile.write(body)

    def _cut(self, body: bytes) -> None:
        self.hub.faults.stored = self.hub.faults.cut_error
        self.wfile.write(body)
        self.wfile.flush()
        if self.hub.faults.reset:
            time.sleep(0.2)  # a reset throws away what the other side has not read yet
            self.connection.setsockopt(*_RESET_ON_CLOSE)
            os.close(self.connection.detach())  # the server would shut it down politely first
        self.close_connection = True

    def _error(self, status: int, code: str | None, message: str) -> None:
        headers = {"X-Error-Message": message, "Content-Type": "application/json"}
        if code:
            headers["X-Error-Code"] = code
        if status == 429:
            headers["Retry-After"] = "7"
        self._send(status, json.dumps({"error": message}).encode(), headers)
