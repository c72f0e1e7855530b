"""The network at its worst, and no network: one line with the way out, nothing fetched twice, and what the
cache has is used.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import Any

import pytest
from huggingface_hub import constants

from experts.disk.find import model_folder, open_anywhere
from experts.errors import ExciseError
from prune.inspect import inspect_model
from tests.support import tiny
from tests.support.fake_hub import INDEX, SHARDS, FakeHub, downloads, names
from tests.support.inputs import uniform_plan

SECOND = "GET .*00002-of"
STEPS = {
    "listing": "GET /api/models/org/tiny$",
    "configuration": "(HEAD|GET) .*config.json",
    "index": f"GET .*{INDEX}",
    "headers": SECOND,
    "companion": "GET .*README.md",
    "lookup": "HEAD .*00002-of",
}


def read(name: str) -> Path:
    """As a command does it: headers first."""
    open_anywhere(name)
    return model_folder(name)


@pytest.mark.parametrize("kind", ["500", "reset"])
@pytest.mark.parametrize("step", STEPS)
def test_a_fault_at_any_step_is_one_line(step: str, kind: str, hub: FakeHub, hub_folder: Path) -> None:
    hub.fail(STEPS[step], kind)
    with pytest.raises(
        ExciseError, match=r"^org/tiny: .*check the connection and run the command again"
    ) as caught:
        read("org/tiny")
    assert "\n" not in str(caught.value)
    hub.faults.clear()
    assert names(read("org/tiny")) == names(hub_folder)


@pytest.mark.parametrize(
    "fault", [("429", 0), ("reset", 50_000), ("close", 50_000), ("short", 50_000), ("stall", 0)]
)
def test_a_fault_in_the_middle_of_the_weights(
    fault: tuple[str, int], hub: FakeHub, hub_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line with the way out; the second run asks for no finished file again."""
    if fault[0] == "stall":
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    hub.fail(SECOND, fault[0], after=fault[1])
    told = r"org/tiny: the download failed \(.*run the command again: files that are complete are kept$"
    with pytest.raises(ExciseError, match=told) as caught:
        model_folder("org/tiny")
    assert "\n" not in str(caught.value)
    kept = {name for name, sent in hub.fetched().items() if sent == (hub_folder / name).stat().st_size}
    hub.forget()
    assert names(model_folder("org/tiny")) == names(hub_folder)
    assert set(hub.fetched()) == names(hub_folder) - kept
    assert SHARDS[1] not in kept


def test_a_connection_that_comes_back_is_taken_up(hub: FakeHub, hub_folder: Path) -> None:
    hub.fail(SECOND, "close", after=50_000, times=2)
    assert names(model_folder("org/tiny")) == names(hub_folder)


def test_the_hub_goes_away_between_small_files_and_weights(hub: FakeHub) -> None:
    """The client contents itself with the folder as it is; it is not whole."""
    hub.fail("GET .*/tree/", 500)
    with pytest.raises(
        ExciseError, match=r"org/tiny: the download broke off before LICENSE; check the connection"
    ):
        model_folder("org/tiny")


def test_a_file_of_another_size_is_fetched_again(hub: FakeHub, hub_folder: Path) -> None:
    """Cut off by a full disk or a crash."""
    blob = (model_folder("org/tiny") / SHARDS[1]).resolve()
    blob.write_bytes(blob.read_bytes()[:1000])
    hub.forget()
    assert (model_folder("org/tiny") / SHARDS[1]).read_bytes() == (hub_folder / SHARDS[1]).read_bytes()
    assert downloads(hub) == [SHARDS[1]]


def test_a_full_disk(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("experts.disk.repository.snapshot_download", full)
    with pytest.raises(ExciseError, match=r"cache: No space left on device; HF_HOME names another folder"):
        model_folder("org/tiny")


@pytest.mark.parametrize("error", [ValueError(""), RuntimeError("\n"), ImportError(), OSError()])
@pytest.mark.parametrize("where", ["repository.snapshot_download", "hub_cache.hf_hub_download", "hub.HfApi"])
def test_an_error_that_says_nothing(
    where: str, error: Exception, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its type is named: the HTTP library, proxies and storage raise what they like."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(f"experts.disk.{where}", fail)
    with pytest.raises(ExciseError, match=rf"org/tiny: .*\({type(error).__name__}\)"):
        model_folder("org/tiny")


# Without the hub.


def test_a_cached_model_needs_no_hub(hub: FakeHub, offline: Callable[[], None]) -> None:
    fetched, commit = model_folder("org/tiny"), hub.repos["org/tiny"].commit()
    hub.forget()
    offline()
    for name in ("org/tiny", "org/tiny@main", f"org/tiny@{commit}"):
        assert model_folder(name) == fetched
        assert inspect_model(name)["folder"] == f"org/tiny@{commit}"
    assert not hub.sent


def test_a_cached_model_and_a_hub_that_is_down(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "excise")
    fetched = model_folder("org/tiny")
    for kind in ("500", "429", "reset", "junk"):
        hub.forget()
        caplog.clear()
        hub.fail(".", kind)
        assert model_folder("org/tiny") == fetched
        assert f"taken as the local cache has it, commit {fetched.name}" in caplog.text


def test_a_model_that_is_there_in_part(hub: FakeHub, offline: Callable[[], None]) -> None:
    inspect_model("org/tiny")
    offline()
    for ask in (inspect_model, model_folder):
        with pytest.raises(
            ExciseError,
            match=rf"org/tiny: the local cache lacks {SHARDS[0]} and 2 more files; the hub cannot be reached",
        ):
            ask("org/tiny")
    with pytest.raises(
        ExciseError,
        match=r"org/nope: no such folder, and the hub cannot be reached \(HF_HUB_OFFLINE is set\)",
    ):
        inspect_model("org/nope")


def test_one_file_that_is_not_there(hub: FakeHub, tmp_path: Path, offline: Callable[[], None]) -> None:
    hub.add("org/one", tiny.save(tiny.build("olmoe"), tmp_path / "one"))
    inspect_model("org/one")
    offline()
    with pytest.raises(
        ExciseError,
        match=(
            r"org/one: neither model.safetensors .* \(so it is in the "
            r"local cache; the hub cannot be reached"
        ),
    ):
        inspect_model("org/one")


# The command line.

ROOT = Path(__file__).resolve().parents[3]
UNWAITING = "import time; time.sleep = lambda seconds: None\nfrom prune.entry import main; main()"


def environment(hub: FakeHub, tmp_path: Path, **changes: str) -> dict[str, str]:
    ours = {
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "home"),
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
    }
    quiet = (
        "TQDM_DISABLE",
        "HF_HUB_DISABLE_PROGRESS_BARS",
    )  # left in this process by commands that ran in it
    there = {name: value for name, value in os.environ.items() if name not in quiet}
    return {**there, "PYTHONPATH": str(ROOT), **ours, "HF_HUB_DOWNLOAD_TIMEOUT": "2", **changes}


def excise(
    hub: FakeHub, tmp_path: Path, *arguments: str, **changes: str
) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", UNWAITING, *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment(hub, tmp_path, **changes),
        cwd=tmp_path,
        check=False,
    )


@pytest.fixture
def export(tmp_path: Path) -> list[str]:
    (tmp_path / "plan.json").write_text(json.dumps(uniform_plan((0, 1, 2)).to_json()))
    return ["export", "org/tiny", str(tmp_path / "plan.json"), str(tmp_path / "out")]


@pytest.mark.slow
def test_a_command_and_a_network_that_breaks(hub: FakeHub, tmp_path: Path, export: list[str]) -> None:
    """Exit 1 and one line; the same command goes on.

    Progress is on stderr, and nothing but the result on stdout.
    """
    hub.fail(SECOND, "reset", after=50_000, skip=1)
    broken = excise(hub, tmp_path, *export, "--quiet")
    assert (broken.returncode, broken.stdout, broken.stderr.count("\n")) == (1, "", 1), broken.stderr
    assert broken.stderr.startswith("excise: org/tiny: the download failed (")
    assert not (tmp_path / "out").exists()
    hub.forget()
    done = excise(hub, tmp_path, *export, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["removed"] > 0
    assert "Fetching" in done.stderr
    hub.forget()
    again = excise(hub, tmp_path, *export, "--force", "--json", "--quiet", HF_HUB_OFFLINE="1")
    assert (again.returncode, again.stderr) == (0, "")
    assert not hub.sent


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"HF_ENDPOINT": "http://127.0.0.1:1"}, "Connection refused"),
        ({"HF_ENDPOINT": "tls"}, "SSL"),
        ({"HTTP_PROXY": "foo://proxy"}, "Unknown scheme for proxy URL"),
        (
            {"HF_ENDPOINT": "http://[broken"},
            "a setting of the hub in the environment cannot be read (Invalid IPv6 URL)",
        ),
        (
            {"HF_HUB_ETAG_TIMEOUT": "soon"},
            "a setting of the hub in the environment cannot be read (invalid literal",
        ),
        (
            {"HF_HOME": "/dev/null/home"},
            "/dev/null/home/token: Not a directory; HF_HOME names another folder",
        ),
    ],
)
def test_settings_that_lead_nowhere(
    changes: dict[str, str], message: str, hub: FakeHub, tmp_path: Path
) -> None:
    if changes.get("HF_ENDPOINT") == "tls":
        changes = {"HF_ENDPOINT": hub.url.replace("http://", "https://")}
    done = excise(hub, tmp_path, "inspect", "org/tiny", **changes)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert done.stderr.startswith("excise: ")
    assert message in done.stderr


@pytest.mark.slow
def test_ctrl_c_during_a_download(hub: FakeHub, tmp_path: Path, export: list[str]) -> None:
    """At once, and not at the end of the files that are on their way."""
    hub.slow = 0.5  # a shard takes 4 s
    command = [sys.executable, "-m", "prune.entry", *export, "--quiet"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment(hub, tmp_path)
    ) as process:
        while not downloads(hub) and process.poll() is None:
            sleep(0.02)
        sleep(1)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert (process.returncode, error.count("\n")) == (1, 1), error
    assert error.startswith("excise: interrupted")
    assert not [
        file for file in (tmp_path / "home").rglob("*") if file.name in SHARDS or file.suffix == ".incomplete"
    ]
