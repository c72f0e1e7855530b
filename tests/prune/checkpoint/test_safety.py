"""Exports that are killed, run out of disk, or read from sources that fail, change or mean harm; code that
comes with a checkpoint.
"""

import errno
import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from benchmarks.deepseek import DeepSeek
from benchmarks.kills import content, expected, is_right, kill_many
from experts.disk.layout import Layout, lay_out
from experts.disk.shards import open_checkpoint
from experts.errors import ExciseError
from experts.loading import load_network, load_tokenizer, skeleton
from experts.plan import Plan
from prune.checkpoint import atomic_folder as place
from prune.checkpoint import ranges, shard_files
from prune.checkpoint import write as checkpoint_module
from prune.checkpoint.write import TrainedWeights, export
from prune.console.cli import app
from prune.console.exits import printable
from prune.effects.request import Request
from prune.recipe.read import read_recipe
from prune.recipe.schema import Recipe
from prune.session.prepare import prepare
from prune.session.session import Session
from tests.support import tiny
from tests.support.inputs import unequal_plan

MODEL = DeepSeek(hidden=128, inner=32, layers=3, experts=16, top_k=4, groups=4, vocabulary=64, shards=3)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    MODEL.write(tmp_path / "source")
    return tmp_path / "source"


def opened(folder: Path) -> tuple[Layout, Plan]:
    kept = {int(layer): tuple(ids) for layer, ids in MODEL.kept().items()}
    return lay_out(open_checkpoint(folder)), Plan(MODEL.experts, kept)


FILLING = """
import sys, time
from pathlib import Path
from prune.checkpoint.atomic_folder import growing
with growing(Path(sys.argv[1])) as folder:
    (folder / "shard").touch()
    print(folder, flush=True)
    time.sleep(60)
"""


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(("out", ".out"))]


# Killed.


@pytest.mark.slow
def test_twenty_kills_leave_no_folder_that_loads_wrongly(tmp_path: Path) -> None:
    """Real processes of `excise export`, SIGKILL at seeded random moments; every folder with a config.json is
    compared byte by byte.
    """
    model = DeepSeek(hidden=1024, inner=256, layers=4, experts=64, vocabulary=2048, shards=5)
    found = kill_many(tmp_path, model, kills=20)
    assert found["loaded_wrongly"] == []
    assert found["hidden_after_it"] == 0
    assert found["last_export_is_right"]
    assert found["fell"]["in"] >= 5, "most moments have to fall into the writing"  # type: ignore[index]


def test_the_check_of_a_folder_sees_one_wrong_byte(source: Path, tmp_path: Path) -> None:
    """What the kills are judged by: right as exported, wrong with one byte changed, a shard short, another
    config or no index.
    """
    wanted = expected(source, MODEL, MODEL.kept())
    export(*opened(source), tmp_path / "out")
    assert is_right(tmp_path / "out", source, MODEL, wanted)
    shard = sorted((tmp_path / "out").glob("*.safetensors"))[0]
    for damage in (
        lambda out: flip_last_byte(out / shard.name),
        lambda out: (out / shard.name).unlink(),
        lambda out: shutil.copyfile(source / "config.json", out / "config.json"),
        lambda out: (out / "model.safetensors.index.json").unlink(),
    ):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        damage(Path(shutil.copytree(tmp_path / "out", tmp_path / "copy")))
        assert not is_right(tmp_path / "copy", source, MODEL, wanted)


def flip_last_byte(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))


def test_hidden_folders_of_dead_exports_go(source: Path, tmp_path: Path) -> None:
    """Those that another process fills stay, whatever its number is where it runs.

    The name may hold glob signs.
    """
    out = tmp_path / "out[1]"
    for kind in ("partial", "replaced"):
        out.with_name(f".{out.name}.1-abc.{kind}").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", FILLING, str(out)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        alive = Path(other.stdout.readline().strip())
        export(*opened(source), out)
        found, filled = sorted(leftovers(tmp_path)), (alive / "shard").exists()
        other.kill()
    assert (found, filled) == ([alive.name, out.name], True)
    export(*opened(source), out, force=True)
    assert leftovers(tmp_path) == [out.name]


def test_two_exports_to_one_place(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second to arrive finds it taken, and says so; neither harms the other."""
    layout, plan = opened(source)

    def overtaken(*arguments: Any) -> None:
        monkeypatch.undo()
        export(layout, plan, tmp_path / "out")
        place.settle(*arguments)

    monkeypatch.setattr(checkpoint_module, "settle", overtaken)
    with pytest.raises(ExciseError, match="not empty"):
        export(layout, plan, tmp_path / "out")
    assert is_right(tmp_path / "out", source, MODEL, expected(source, MODEL, MODEL.kept()))
    assert leftovers(tmp_path) == ["out"]


@pytest.mark.parametrize("swaps", [True, False])
def test_force_never_leaves_the_place_empty(
    swaps: bool, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system swaps two folders in one step, `out` exists at every moment; where it cannot, the new
    one still arrives.
    """
    export(*opened(source), tmp_path / "out")
    seen, rename = [], Path.rename

    def watch(self: Path, target: Path) -> Path:
        done = rename(self, target)
        seen.append((tmp_path / "out").exists())
        return done

    monkeypatch.setattr(Path, "rename", watch)
    if not swaps:
        monkeypatch.setattr(place, "_exchanged", lambda *_: False)
    (tmp_path / "out" / "old").touch()
    export(*opened(source), tmp_path / "out", force=True)
    assert all(seen) == swaps
    assert not (tmp_path / "out" / "old").exists()
    assert leftovers(tmp_path) == ["out"]


def test_the_new_name_is_on_disk_before_it_is_done(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last thing that is synced is the folder with the new entry."""
    seen: list[tuple[Path, bool]] = []
    monkeypatch.setattr(place, "sync", lambda path: seen.append((path, (tmp_path / "out").exists())))
    export(*opened(source), tmp_path / "out")
    assert seen == [(tmp_path, True)]


def test_a_link_stays_a_link(source: Path, tmp_path: Path) -> None:
    """The folder it leads to is written, and replaced."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "real")
    for force in (False, True):
        export(*opened(source), tmp_path / "out", force=force)
        assert (tmp_path / "out").is_symlink()
        assert is_right(tmp_path / "disk" / "real", source, MODEL, expected(source, MODEL, MODEL.kept()))
        assert [path.name for path in (tmp_path / "disk").iterdir()] == ["real"]


def test_config_gets_its_name_last(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while it is being written, it would stand there half.

    When everything is synced there is no such file yet.
    """
    seen, sync = [], checkpoint_module._sync_all

    def look(folder: Path) -> None:
        seen.extend(path.name for path in folder.iterdir())
        sync(folder)

    monkeypatch.setattr(checkpoint_module, "_sync_all", look)
    layout, plan = opened(source)
    export(layout, plan, tmp_path / "out", recovered=TrainedWeights({}, {"training": "none"}))
    assert {path.name for path in (tmp_path / "out").iterdir()} - set(seen) == {"config.json"}


def test_what_is_removed_stops_being_a_checkpoint_first(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder that --force replaces: a kill in the middle of its removal leaves no config.json beside half
    of the weights.
    """
    export(*opened(source), tmp_path / "out")
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    export(*opened(source), tmp_path / "out", force=True)
    assert [path.name for path in tmp_path.glob(".out*/*") if path.name == "config.json"] == []
    assert list(tmp_path.glob(".out.*.partial/*.safetensors")), "the removal was stopped before the weights"


# Disks that are full or fail.


def failing(code: int, at: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """`real`, whose call number `at` fails."""
    calls: Iterator[int] = iter(range(10**9))

    def call(*arguments: Any, **options: Any) -> Any:
        if next(calls) == at:
            raise OSError(code, os.strerror(code))
        return real(*arguments, **options)

    return call


@pytest.mark.parametrize(
    ("module", "function", "code", "at"),
    [
        *((os, "pwrite", code, at) for code in (errno.ENOSPC, errno.EDQUOT) for at in (0, 7, 20)),
        *((os, "fsync", code, at) for code in (errno.ENOSPC, errno.EIO) for at in (0, 4, 9)),
        *((os, "preadv", errno.EIO, at) for at in (0, 7, 30)),
        (shutil, "copyfile", errno.ENOSPC, 0),
        *((checkpoint_module, "write_checkpoint_json", errno.ENOSPC, at) for at in (0, 1, 2)),
        (Path, "rename", errno.EIO, 0),
    ],
)
def test_a_disk_that_fails(
    module: Any,
    function: str,
    code: int,
    at: int,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The n-th write, sync or read fails: one line, and nothing is left; the export works once
    the disk does.
    """
    layout, plan = opened(source)
    monkeypatch.setattr(ranges, "SPAN", 2**16)
    monkeypatch.setattr(module, function, failing(code, at, getattr(module, function)))
    with pytest.raises(ExciseError, match=f"{os.strerror(code)}; nothing was written to {tmp_path / 'out'}"):
        export(layout, plan, tmp_path / "out")
    assert leftovers(tmp_path) == []
    monkeypatch.undo()
    export(layout, plan, tmp_path / "out")
    assert is_right(tmp_path / "out", source, MODEL, expected(source, MODEL, MODEL.kept()))


def test_a_read_error_names_the_source(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, plan = opened(source)
    monkeypatch.setattr(os, "preadv", failing(errno.EIO, 0, os.preadv))
    with pytest.raises(ExciseError, match=r"source/model-\d+-of-00003\.safetensors: Input/output error"):
        export(layout, plan, tmp_path / "out")


def test_a_disk_that_is_really_full(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system of 256 KiB, which says that it has more."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)], capture_output=True
    ).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2**40})())
        with pytest.raises(ExciseError, match=r"No space left on device; nothing was written"):
            export(*opened(source), small / "out")
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_reading_that_fails_before_the_export(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Headers and fingerprint: the command ends with one line that names the file."""
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({**opened(source)[1].to_json(), "model": "of some model"}))
    monkeypatch.setattr(os, "pread", failing(errno.EIO, 1, os.pread))
    done = CliRunner().invoke(app, ["export", str(source), str(plan), str(tmp_path / "out")])
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert "model-00001-of-00003.safetensors: cannot be read (Input/output error)" in done.stderr


def test_ranges_of_one_file_for_two_shards(tmp_path: Path) -> None:
    """TrainedWeights weights stand in one file, and go to the shards their tensors are in."""
    (tmp_path / "source").write_bytes(b"abcdef")
    targets = [tmp_path / "one", tmp_path / "two"]
    for target in targets:
        target.write_bytes(bytes(3))
    ranges.copy_all(ranges.Copy(tmp_path / "source", 3 * i, 3, target, 0) for i, target in enumerate(targets))
    assert [target.read_bytes() for target in targets] == [b"abc", b"def"]


# Sources that change.


def replace_by_another(path: Path) -> None:
    """A new file of the same length and time in its place, as `rsync -t` puts it there."""
    found = path.stat()
    path.with_suffix(".new").write_bytes(path.read_bytes())
    os.utime(path.with_suffix(".new"), ns=(found.st_atime_ns, found.st_mtime_ns))
    path.with_suffix(".new").replace(path)


CHANGES: list[tuple[str, Callable[[Path], Any]]] = [
    ("model-00002-of-00003.safetensors", flip_last_byte),
    ("model-00002-of-00003.safetensors", replace_by_another),
    (
        "config.json",
        lambda path: path.write_text(path.read_text().replace('"vocab_size": 64', '"vocab_size": 65')),
    ),
    ("tokenizer.json", lambda path: path.write_text("{}")),
]


@pytest.mark.parametrize(
    ("moment", "name", "change"),
    [
        *(("during the copy", *change) for change in CHANGES),
        *(("before the first byte", *change) for change in CHANGES[:3]),
    ],
)
def test_a_source_that_changes(
    moment: str,
    name: str,
    change: Callable[[Path], Any],
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the reading of the headers on; beside shards the configuration and, while it is copied, the
    tokenizer count too.
    """
    layout, plan = opened(source)
    copy_all = ranges.copy_all

    def changed(jobs: Any) -> None:
        copy_all(jobs)
        change(source / name)

    if moment == "during the copy":
        monkeypatch.setattr(shard_files, "copy_all", changed)
    else:
        change(source / name)
    with pytest.raises(ExciseError, match=rf"{name}: changed while it was being copied; start again"):
        export(layout, plan, tmp_path / "out")
    assert leftovers(tmp_path) == []


# The hub's cache, and links.


@pytest.fixture
def cached(source: Path, tmp_path: Path) -> Path:
    """The source as the hub's cache keeps it: blobs under their hashes, and a snapshot of relative links to
    them.
    """
    root = tmp_path / "models--deepseek-ai--tiny"
    (root / "blobs").mkdir(parents=True)
    snapshot = root / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(source.iterdir())):
        file.rename(root / "blobs" / f"{number:064x}")
        (snapshot / file.name).symlink_to(Path("..") / ".." / "blobs" / f"{number:064x}")
    return snapshot


def test_a_hub_cache_is_copied_as_content(cached: Path, tmp_path: Path) -> None:
    """Neither links nor second names of the blobs: what is written outlives the cache."""
    wanted = expected(cached, MODEL, MODEL.kept())
    export(*opened(cached), tmp_path / "out")
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    assert {path.stat().st_nlink for path in (tmp_path / "out").iterdir()} == {1}
    shutil.rmtree(cached.parent.parent)
    assert content(tmp_path / "out") == wanted


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", "model.safetensors.index.json", "model-00002-of-00003.safetensors"],
)
def test_a_broken_link_is_refused(name: str, cached: Path, tmp_path: Path) -> None:
    """A cache that lost a blob; a tokenizer that silently stays away would be found out only when the model
    is used.
    """
    (cached / name).resolve().unlink()
    with pytest.raises(
        ExciseError,
        match=rf"{name}: a link to \.\./\.\./blobs/0+\d, which does not exist; download the checkpoint again",
    ):
        export(*opened(cached), tmp_path / "out")
    assert leftovers(tmp_path) == []


def test_a_changed_blob_is_seen_through_its_link(cached: Path, tmp_path: Path) -> None:
    layout, plan = opened(cached)
    flip_last_byte((cached / "model-00002-of-00003.safetensors").resolve())
    with pytest.raises(ExciseError, match=r"model-00002-of-00003\.safetensors: changed"):
        export(layout, plan, tmp_path / "out")


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/x.safetensors",
        "sub/x.safetensors",
        "..\\x.safetensors",
        "x\0.safetensors",
        "..",
        "",
        "x.bin",
        "x.safetensors/",
    ],
)
def test_an_index_that_points_elsewhere(name: str, source: Path) -> None:
    shutil.copyfile(source / "model-00001-of-00003.safetensors", source.parent / "x.safetensors")
    (source / "sub").mkdir()
    shutil.copyfile(source / "model-00001-of-00003.safetensors", source / "sub" / "x.safetensors")
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ExciseError, match=r"is not a plain \*\.safetensors name in this folder"):
        open_checkpoint(source)


def test_things_that_are_no_files(source: Path) -> None:
    """A pipe would be waited for; a folder cannot be read."""
    for name in ("config.json", "model-00002-of-00003.safetensors"):
        real = (source / name).rename(source.parent / name)
        for make in (os.mkfifo, os.mkdir):
            make(source / name)
            with pytest.raises(ExciseError, match=rf"{name}: not a regular file"):
                open_checkpoint(source)
            (source / name).rmdir() if (source / name).is_dir() else (source / name).unlink()
        real.rename(source / name)


def test_a_message_stays_on_its_line() -> None:
    """Names in a checkpoint may hold line ends and terminal commands."""
    assert printable("tensor a\nb\x1b[2J\u2028 é") == r"tensor a\nb\x1b[2J\u2028 é"


# Code that comes with a checkpoint.

CODE = """
from pathlib import Path
Path({marker!r}).write_text("ran")
from transformers import OlmoeConfig, OlmoeForCausalLM
class TheirConfig(OlmoeConfig):
    model_type = {kind!r}
class TheirModel(OlmoeForCausalLM):
    config_class = TheirConfig
"""


@pytest.fixture
def with_code(tmp_path: Path) -> Callable[[str], tuple[Path, Path]]:
    """A tiny OLMoE that names Python code of its own, under a model type; the code leaves a marker when it
    runs.
    """

    def make(kind: str) -> tuple[Path, Path]:
        folder, marker = tiny.save(tiny.build("olmoe"), tmp_path / "model"), tmp_path / "marker"
        (folder / "theirs.py").write_text(CODE.format(marker=str(marker), kind=kind))
        config = json.loads((folder / "config.json").read_text())
        code = {"AutoConfig": "theirs.TheirConfig", "AutoModelForCausalLM": "theirs.TheirModel"}
        (folder / "config.json").write_text(json.dumps({**config, "model_type": kind, "auto_map": code}))
        return folder, marker

    return make


def recipe_of(folder: Path, tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text(" ".join(map(str, range(400))))
    (tmp_path / "b.txt").write_text(" ".join(map(str, range(400, 900))))
    recipe = {
        "model": str(folder),
        "dtype": "float32",
        "calibration": {"data": {"text": [str(tmp_path / "a.txt")]}, "sequences": 2, "length": 32},
        "criteria": ["reap"],
        "prune": {"fraction": 0.5},
        "validate": {
            "data": {"text": [str(tmp_path / "b.txt")]},
            "sequences": 2,
            "length": 32,
            "random_plans": 20,
        },
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path / "recipe.yaml"


def commands(folder: Path, tmp_path: Path) -> dict[str, list[str]]:
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(Plan(8, dict.fromkeys((0, 1, 2), (0, 2, 3, 5))).to_json()))
    recipe = recipe_of(folder, tmp_path)
    text = ["--text", str(tmp_path / "a.txt"), "--window", "16", "--sequences", "1", "--layers", "0"]
    return {
        "inspect": ["inspect", str(folder)],
        "export": ["export", str(folder), str(plan), str(tmp_path / "out")],
        "effects": ["effects", str(folder), *text, "-o", str(tmp_path / "effects.csv")],
        "prune": ["prune", str(recipe), "-o", str(tmp_path / "run")],
    }


def test_code_of_a_checkpoint_is_not_run(
    with_code: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    """A model type that only its own code knows: read and exported without it, refused in one line where it
    would be needed.
    """
    folder, marker = with_code("theirs")
    asked = commands(folder, tmp_path)
    for name in ("inspect", "export"):
        assert CliRunner().invoke(app, asked[name]).exit_code == 0
    for name in ("effects", "prune"):
        done = CliRunner().invoke(app, [*asked[name], "--quiet"])
        assert done.exit_code == 1
        said = [line for line in done.stderr.splitlines() if line.startswith("excise: ")]
        assert len(said) == 1
        assert "trust_remote_code: true" in said[0]
        assert "--trust-remote-code" in said[0]
        assert str(folder) in said[0]
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "option"), [("effects", ["--trust-remote-code"]), ("prune", ["--set", "trust_remote_code=true"])]
)
def test_code_of_a_checkpoint_runs_when_the_user_says_so(
    name: str, option: list[str], with_code: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    folder, marker = with_code(f"theirs_{name}")
    CliRunner().invoke(app, [*commands(folder, tmp_path)[name], *option, "--quiet"])
    assert marker.exists()


def test_trust_is_off_wherever_it_is_not_mentioned() -> None:
    """In Python too: every function and class that takes trust_remote_code has it off by default."""
    for taker in (load_network, skeleton, load_tokenizer, Request):
        assert inspect.signature(taker).parameters["trust_remote_code"].default is False
    assert Recipe.model_fields["trust_remote_code"].default is False


def test_a_known_model_is_loaded_by_the_library(with_code: Callable[[str], tuple[Path, Path]]) -> None:
    """Many checkpoints still carry the code they were published with; the library's own class takes its
    place.
    """
    folder, marker = with_code("olmoe")
    assert type(load_network(folder)).__module__.startswith("transformers.models.olmoe")
    assert not marker.exists()


def test_the_reload_of_unequal_counts_runs_our_code_only(
    with_code: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    """Such a checkpoint is checked with our modeling_excise.py trusted; code of the source must not come in
    by the same door.
    """
    folder, marker = with_code("olmoe")
    prepared = prepare(read_recipe(recipe_of(folder, tmp_path), ()), tmp_path / "run")
    plan = unequal_plan(prepared.layout.shape.layers)
    export(prepared.layout, plan, tmp_path / "out")
    logits = Session(prepared).reloaded_logits(tmp_path / "out", plan, torch.device("cpu"))
    assert logits.shape[-1] == tiny.VOCABULARY
    assert not marker.exists()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["auto_map"] == dict.fromkeys(
        ("AutoModelForCausalLM", "AutoModelForImageTextToText"), "modeling_excise.OlmoeForCausalLM"
    )
