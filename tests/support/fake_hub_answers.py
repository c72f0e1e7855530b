"""How the hub on this machine answers a request: files, lists of files, refusals, and faults."""

import hashlib
import json
import re
import socket
import struct
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from time import sleep  # tests switch time.sleep off for the client
from typing import Any, Protocol
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

CHUNK = 2**14  # bytes
WEIGHTS = (".safetensors", ".bin", ".gguf", ".pth")
NO_REPO = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Invalid username or password."}
API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?")
FILE = re.compile(r"/([^/]+/[^/]+)/resolve/(.+)")
Headers = dict[str, str]


@dataclass
class Sent:
    """One answer. path: of a file, or the endpoint; bytes: of its body, as far as they were sent."""

    method: str
    path: str
    status: int
    bytes: int


@dataclass
class Fault:
    """What happens to requests whose `METHOD path` matches: not to the first `skip`, to the `times` next
    ones.

    kind: a status like 500, reset, close, stall, junk (a page that is not the hub's), short (another length);
        after: bytes sent before.
    """

    where: str
    kind: str
    after: int = 0
    skip: int = 0
    times: int = 10**6
    headers: dict[str, str] = field(default_factory=dict)


class Repo:
    """revisions: branch, tag or commit -> the files then."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.revisions: dict[str, dict[str, bytes]] = {}
        self.push(files)

    def push(self, files: dict[str, bytes], *names: str) -> str:
        """A new commit, at the head of main, or under these names."""
        commit = hashlib.sha1(
            repr(sorted((name, hashlib.sha1(data).hexdigest()) for name, data in files.items())).encode()
        ).hexdigest()
        for name in (commit, *(names or ("main",))):
            self.revisions[name] = files
        return commit

    def commit(self, revision: str = "main") -> str:
        files = self.revisions[revision]
        return next(
            name
            for name, held in self.revisions.items()
            if held is files and re.fullmatch(r"[0-9a-f]{40}", name)
        )


class Hub(Protocol):
    """What answers depend on."""

    repos: dict[str, Repo]
    sent: list[Sent]
    faults: list[Fault]
    gated: set[str]
    token: str
    slow: float


class Handler(BaseHTTPRequestHandler):
    """Of one hub; `handler_of` names it."""

    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body go at once

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        found = API.fullmatch(path) or FILE.fullmatch(path)
        if not found:  # telemetry and the like
            return self.refuse("", 404, {})
        of_file = found.re is FILE
        fault = self.fault(path)
        if of_file:  # what is counted is the file's own name, whatever the commit
            path = re.sub(rf"/{re.escape(found[1])}/resolve/([0-9a-f]{{40}}|main)/", "", path)
        if fault and self.failed(path, fault):
            return None
        repo = self.hub.repos.get(found[1])
        if repo is None:
            return self.refuse(path, 401, NO_REPO)
        if of_file:
            return self.file(found[1], repo, found[2], fault)
        return self.listing(found, repo, path, url)

    def failed(self, path: str, fault: Fault) -> bool:
        """Whether a fault took the place of the answer; one that comes `after` some bytes does not."""
        if fault.kind.isdecimal():
            self.refuse(path, int(fault.kind), fault.headers)
            return True
        if fault.kind == "junk":
            self.send(path, b"<html>log in to the hotel first</html>", {"Content-Type": "text/html"})
            return True
        if fault.kind == "stall":
            sleep(30)
        if not fault.after:
            self.drop(fault.kind)
        return not fault.after

    def listing(self, asked: re.Match[str], repo: Repo, path: str, url: SplitResult) -> None:
        """The files of a revision, alone or with what is known of the model."""
        name, kind, revision = asked[1], asked[2], asked[3] or "main"
        if revision not in repo.revisions:
            return self.refuse(path, 404, {"X-Error-Code": "RevisionNotFound"})
        entries = [_entry(file, data) for file, data in repo.revisions[revision].items()]
        if kind == "tree":
            return self.send(path, json.dumps(entries).encode())
        blobs = "blobs" in parse_qs(url.query)
        info = {
            "id": name,
            "sha": repo.commit(revision),
            "siblings": [_sibling(entry, blobs) for entry in entries],
            "gated": "manual" if name in self.hub.gated else False,
        }
        return self.send(path, json.dumps(info).encode())

    def file(self, name: str, repo: Repo, rest: str, fault: Fault | None) -> None:
        held = [revision for revision in repo.revisions if rest.startswith(f"{revision}/")]
        if not held:
            return self.refuse(self.path, 404, {"X-Error-Code": "RevisionNotFound"})
        revision = max(held, key=len)
        path = rest[len(revision) + 1 :]
        commit = {"X-Repo-Commit": repo.commit(revision)}
        if name in self.hub.gated and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self.refuse(path, 401, {"X-Error-Code": "GatedRepo", **commit})
        data = repo.revisions[revision].get(path)
        if data is None:
            return self.refuse(path, 404, {"X-Error-Code": "EntryNotFound", **commit})
        return self.send(path, data, {"ETag": f'"{_blob(path, data)}"', **commit}, fault)

    def fault(self, path: str) -> Fault | None:
        for fault in self.hub.faults:
            if re.search(fault.where, f"{self.command} {path}"):
                fault.skip -= 1
                if fault.skip < 0 < fault.times:
                    fault.times -= 1
                    return fault
        return None

    def refuse(self, path: str, status: int, headers: Headers) -> None:
        if path:
            self.hub.sent.append(Sent(self.command, path, status, 0))
        self.begin(status, {**headers, "Content-Length": "0"})
        self.end_headers()

    def begin(self, status: int, headers: Headers) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)

    def drop(self, kind: str) -> None:
        if kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def send(
        self, path: str, data: bytes, headers: Headers | None = None, fault: Fault | None = None
    ) -> None:
        first, last, status = self.range_of(data)
        usual = {"Content-Type": "application/json", "Accept-Ranges": "bytes"}
        self.begin(status, {**usual, **(headers or {})})
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last - 1}/{len(data)}")
        body = data[first:last]
        if fault and fault.kind == "short" and fault.after:  # a length that is not that of the file
            body, fault = body[: fault.after], None
        self.send_header("Content-Length", str(len(body)))
        sent = Sent(self.command, path, status, 0)
        self.hub.sent.append(sent)
        self.end_headers()
        if self.command != "HEAD":
            self.send_body(body, sent, fault)

    def range_of(self, data: bytes) -> tuple[int, int, int]:
        """First byte, end and status of an answer."""
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return 0, len(data), 200
        last = min(len(data), int(wanted[2]) + 1) if wanted[2] else len(data)
        return int(wanted[1]), last, 206

    def send_body(self, body: bytes, sent: Sent, fault: Fault | None) -> None:
        """The bytes, or those before the fault."""
        end = fault.after if fault and fault.after else len(body)
        for start in range(0, min(end, len(body)), CHUNK):
            chunk = body[start : min(start + CHUNK, end)]
            sent.bytes += len(chunk)  # before: the client may be done with it at once
            self.wfile.write(chunk)
            sleep(self.hub.slow if sent.status == 200 and sent.path.endswith(WEIGHTS) else 0)
        if fault and fault.after:
            self.wfile.flush()
            sleep(0.05)  # a reset would overtake what was sent
            self.drop(fault.kind)


def handler_of(hub: Hub) -> type[Handler]:
    """The handler of one hub: a server makes an object of it for every request."""
    return type("HandlerOfHub", (Handler,), {"hub": hub})


def _blob(path: str, data: bytes) -> str:
    return (
        hashlib.sha256(data).hexdigest()
        if path.endswith(WEIGHTS)
        else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    )


def _entry(path: str, data: bytes) -> dict[str, Any]:
    large = (
        {"lfs": {"oid": _blob(path, data), "size": len(data), "pointerSize": 134}}
        if path.endswith(WEIGHTS)
        else {}
    )
    return {
        "type": "file",
        "path": path,
        "size": len(data),
        "oid": hashlib.sha1(data).hexdigest() if large else _blob(path, data),
        **large,
    }


def _sibling(entry: dict[str, Any], blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": entry["path"]}
    lfs = (
        {"lfs": {"sha256": entry["lfs"]["oid"], "size": entry["size"], "pointerSize": 134}}
        if "lfs" in entry
        else {}
    )
    return {"rfilename": entry["path"], "size": entry["size"], "blobId": entry["oid"], **lfs}
