"""A hub on this machine: the endpoints that huggingface_hub uses, with faults on request.

It counts what it sends.
"""

import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import sleep  # tests switch time.sleep off for the client
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants

from tests.support import tiny

CARD = b"---\nlicense: other\nlicense_name: tiny\nlanguage: en\n---\nA card.\n"
COMPANIONS = {"README.md": CARD, "LICENSE": b"terms", "NOTICE": b"notes", "hy.tiktoken": b"words"}
COPIES = {
    "original/consolidated.00.pth": b"a" * 300_000,
    "metal/model.bin": b"b" * 300_000,
    "consolidated.safetensors": b"c" * 300_000,
    "model.fp16.safetensors": b"d" * 300_000,
    "pytorch_model.bin": b"e" * 300_000,
    "onnx/model.onnx": b"f",
    "optimizer.pt": b"g",
    "assets/logo.png": b"h",
}
SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
INDEX = "model.safetensors.index.json"
CHUNK = 2**14  # bytes
WEIGHTS = (".safetensors", ".bin", ".gguf", ".pth")


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


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the game."""


class FakeHub:
    """repos: organisation/name -> Repo; sent: every answer so far; faults: see Fault; token: what gated
    repositories ask for.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.sent: list[Sent] = []
        self.faults: list[Fault] = []
        self.gated: set[str] = set()
        self.token = "hf_valid"
        self.slow = 0.0  # seconds after every CHUNK of weights, headers excepted
        server = Server(("127.0.0.1", 0), _handler(self))
        self.server = server
        self.url = f"http://127.0.0.1:{server.server_port}"
        self._thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def add(self, name: str, folder: Path | None = None, **files: bytes) -> Repo:
        """A repository with the files of a folder, and others besides."""
        held = (
            {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
            if folder
            else {}
        )
        self.repos[name] = Repo({**held, **files})
        return self.repos[name]

    def fail(self, where: str, kind: str | int, **options: Any) -> None:
        self.faults.append(Fault(where, str(kind), **options))

    def weight_bytes(self) -> int:
        """Of files of weights, headers read by range included."""
        return sum(answer.bytes for answer in self.sent if answer.path.endswith(WEIGHTS))

    def fetched(self) -> dict[str, int]:
        """File -> bytes that were sent of it."""
        found: dict[str, int] = {}
        for answer in self.sent:
            if answer.method == "GET" and not answer.path.startswith("/api/"):
                found[answer.path] = found.get(answer.path, 0) + answer.bytes
        return found

    def forget(self) -> None:
        """Starts counting again."""
        self.sent.clear()
        self.faults.clear()


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # headers and body go at once

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> Any:
            url = urlsplit(self.path)
            path = unquote(url.path)
            api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path)
            file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/(.+)", path)
            found = api or file
            if not found:  # telemetry and the like
                return self.refuse("", 404, {})
            name = found[1]
            if file:  # what is counted is the file's own name, whatever the commit
                path = re.sub(rf"/{re.escape(name)}/resolve/([0-9a-f]{{40}}|main)/", "", path)
            if fault := self.fault(unquote(url.path)):
                if fault.kind.isdecimal():
                    return self.refuse(path, int(fault.kind), fault.headers)
                if fault.kind == "junk":
                    return self.send(
                        path, b"<html>log in to the hotel first</html>", {"Content-Type": "text/html"}
                    )
                if fault.kind == "stall":
                    sleep(30)
                if not fault.after:
                    return self.drop(fault.kind)
            repo = hub.repos.get(name)
            if repo is None:
                return self.refuse(
                    path,
                    401,
                    {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Invalid username or password."},
                )
            if file:
                return self.file(name, repo, file[2], fault)
            revision = (api[3] if api else None) or "main"
            if revision not in repo.revisions:
                return self.refuse(path, 404, {"X-Error-Code": "RevisionNotFound"})
            listed = [_entry(file, data) for file, data in repo.revisions[revision].items()]
            if api and api[2] == "tree":
                return self.send(path, json.dumps(listed).encode())
            blobs = "blobs" in parse_qs(url.query)
            info = {
                "id": name,
                "sha": repo.commit(revision),
                "siblings": [_sibling(entry, blobs) for entry in listed],
            }
            return self.send(
                path, json.dumps({**info, "gated": "manual" if name in hub.gated else False}).encode()
            )

        def file(self, name: str, repo: Repo, rest: str, fault: Fault | None) -> Any:
            held = [revision for revision in repo.revisions if rest.startswith(f"{revision}/")]
            if not held:
                return self.refuse(self.path, 404, {"X-Error-Code": "RevisionNotFound"})
            revision = max(held, key=len)
            path = rest[len(revision) + 1 :]
            commit = {"X-Repo-Commit": repo.commit(revision)}
            if name in hub.gated and self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self.refuse(path, 401, {"X-Error-Code": "GatedRepo", **commit})
            data = repo.revisions[revision].get(path)
            if data is None:
                return self.refuse(path, 404, {"X-Error-Code": "EntryNotFound", **commit})
            return self.send(path, data, {"ETag": f'"{_blob(path, data)}"', **commit}, fault)

        def fault(self, path: str) -> Fault | None:
            for fault in hub.faults:
                if re.search(fault.where, f"{self.command} {path}"):
                    fault.skip -= 1
                    if fault.skip < 0 < fault.times:
                        fault.times -= 1
                        return fault
            return None

        def refuse(self, path: str, status: int, headers: dict[str, str]) -> None:
            if path:
                hub.sent.append(Sent(self.command, path, status, 0))
            self.send_response(status)
            for key, value in {**headers, "Content-Length": "0"}.items():
                self.send_header(key, value)
            self.end_headers()

        def drop(self, kind: str) -> None:
            if kind == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()

        def send(
            self, path: str, data: bytes, headers: dict[str, str] | None = None, fault: Fault | None = None
        ) -> None:
            first, last, status = 0, len(data), 200
            if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                first, status = int(wanted[1]), 206
                last = min(last, int(wanted[2]) + 1) if wanted[2] else last
            self.send_response(status)
            for key, value in {
                "Content-Type": "application/json",
                "Accept-Ranges": "bytes",
                **(headers or {}),
            }.items():
                self.send_header(key, value)
            if status == 206:
                self.send_header("Content-Range", f"bytes {first}-{last - 1}/{len(data)}")
            short = (
                fault.after if fault and fault.kind == "short" else 0
            )  # a length that is not that of the file
            body = data[first:last][: short or None]
            self.send_header("Content-Length", str(len(body)))
            sent = Sent(self.command, path, status, 0)
            hub.sent.append(sent)
            self.end_headers()
            if self.command == "HEAD":
                return
            end = fault.after if fault and fault.after and not short else len(body)
            for start in range(0, min(end, len(body)), CHUNK):
                chunk = body[start : min(start + CHUNK, end)]
                sent.bytes += len(chunk)  # before: the client may be done with it at once
                self.wfile.write(chunk)
                sleep(hub.slow if status == 200 and path.endswith(WEIGHTS) else 0)
            if fault and fault.after and not short:
                self.wfile.flush()
                sleep(0.05)  # a reset would overtake what was sent
                self.drop(fault.kind)

    return Handler


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


@contextmanager
def serving() -> Iterator[FakeHub]:
    hub = FakeHub()
    try:
        yield hub
    finally:
        hub.close()


def write_repository(folder: Path) -> Path:
    """A tiny OLMoE in three shards of about 120 kB, with a card."""
    tiny.save(tiny.build("olmoe"), folder, max_shard_size="120KB")
    for name, data in COMPANIONS.items():
        (folder / name).write_bytes(data)
    assert [file.name for file in sorted(folder.glob("*.safetensors"))] == SHARDS
    return folder


def online(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT, HF_HUB_CACHE and so on say when huggingface_hub is imported."""
    huggingface_hub.close_session()
    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DOWNLOAD_TIMEOUT": 1,
        "HF_TOKEN_PATH": str(cache / "token"),
    }.items():
        monkeypatch.setattr(constants, name, value)


def names(where: Path) -> set[str]:
    """Files under a folder."""
    return {str(file.relative_to(where)) for file in where.rglob("*") if file.is_file()}


def downloads(hub: FakeHub) -> list[str]:
    """Weights that were asked for other than by their headers: the client looks a file up before it fetches
    it.
    """
    return sorted(
        {answer.path for answer in hub.sent if answer.method == "HEAD" and answer.path.endswith(WEIGHTS)}
    )
