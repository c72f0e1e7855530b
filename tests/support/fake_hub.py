"""A hub on this machine: the endpoints that huggingface_hub uses, with faults on request.

It counts what it sends.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from tests.support import tiny
from tests.support.fake_hub_answers import WEIGHTS, Fault, Repo, Sent, handler_of

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
        server = Server(("127.0.0.1", 0), handler_of(self))
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
