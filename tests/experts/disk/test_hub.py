"""Models on the hub, against a hub on this machine that counts what it sends: what is asked, what is fetched,
and what goes wrong.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from huggingface_hub import constants
from typer.testing import CliRunner

from experts.disk.find import find_model, model_folder, open_anywhere
from experts.disk.layout import lay_out
from experts.disk.names import commit_of
from experts.disk.shards import open_checkpoint
from experts.errors import ExciseError
from prune.console.cli import app
from prune.inspect import inspect_model, summary
from prune.recipe.read import read_recipe
from prune.run.pipeline import Run
from prune.session.prepare import prepare
from tests.support import tiny
from tests.support.fake_hub import COMPANIONS, COPIES, INDEX, SHARDS, FakeHub, Repo, downloads, names
from tests.support.inputs import uniform_plan

HEADER = 100_001  # bytes that the client asks for to read a header


# What is asked for.


def test_inspect_reads_only_headers(hub: FakeHub, hub_folder: Path) -> None:
    remote, own = summary(lay_out(open_anywhere("org/tiny"))), summary(lay_out(open_checkpoint(hub_folder)))
    assert {**remote, "folder": ""} == {**own, "folder": ""}
    assert not downloads(hub)
    assert hub.weight_bytes() <= 3 * HEADER
    assert len(hub.sent) == 8, "the listing; config.json and the index, looked up and fetched; three headers"
    assert (
        inspect_model("https://huggingface.co/org/tiny")["folder"]
        == f"org/tiny@{hub.repos['org/tiny'].commit()}"
    )


def test_one_copy_of_the_weights_and_all_that_belongs_to_them(hub: FakeHub, hub_folder: Path) -> None:
    fetched = model_folder("org/tiny")
    assert names(fetched) == names(hub_folder)
    assert all(
        (fetched / name).read_bytes() == (hub_folder / name).read_bytes() for name in names(hub_folder)
    )
    assert downloads(hub) == SHARDS
    last = max(number for number, answer in enumerate(hub.sent) if answer.path in COMPANIONS)
    assert not {answer.path for answer in hub.sent[:last]}.intersection(SHARDS), "weights come last"
    hub.forget()
    assert model_folder("org/tiny") == fetched
    assert [answer.method for answer in hub.sent] == ["GET", "HEAD"], (
        "the listing, and what the branch means now"
    )


def test_a_single_file_hides_an_index_and_its_shards(hub: FakeHub, hub_folder: Path, tmp_path: Path) -> None:
    """As it does for transformers."""
    whole = tiny.save(tiny.build("olmoe", seed=1), tmp_path / "whole")
    hub.add("org/both", hub_folder, **{"model.safetensors": (whole / "model.safetensors").read_bytes()})
    fetched = model_folder("org/both")
    assert downloads(hub) == ["model.safetensors"]
    assert not names(fetched).intersection([*SHARDS, INDEX])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": None}, r"no config\.json, so it is no model that transformers could load$"),
        ({"config.json": None, "q4.gguf": b"x"}, r"no config\.json, .* \(GGUF is for llama\.cpp alone\)"),
        ({INDEX: None}, "only pickled weights"),
        (
            {INDEX: None, "pytorch_model.bin": None, "optimizer.pt": None},
            "neither model.safetensors nor model.safetensors.index.json",
        ),
        ({SHARDS[1]: None}, f"the repository has no {SHARDS[1]}, which {INDEX} names"),
        ({"adapter_config.json": b"{}"}, "holds an adapter"),
        ({"config.json": b"[]"}, "config.json: expected a JSON object"),
    ],
)
def test_repositories_that_are_no_model(files: dict[str, bytes | None], message: str, hub: FakeHub) -> None:
    held = {**hub.repos["org/tiny"].revisions["main"], **files}
    hub.repos["org/odd"] = Repo({name: data for name, data in held.items() if data is not None})
    for ask in (inspect_model, model_folder):
        with pytest.raises(ExciseError, match=message):
            ask("org/odd")
    assert not downloads(hub)


def test_a_shard_that_is_none(hub: FakeHub) -> None:
    hub.repos["org/odd"] = Repo({**hub.repos["org/tiny"].revisions["main"], SHARDS[0]: b"\xff" * 9})
    with pytest.raises(ExciseError, match="org/odd: reading the headers of the weights failed"):
        inspect_model("org/odd")


# Revisions.


def test_revisions(hub: FakeHub, hub_folder: Path) -> None:
    """A branch, a tag, a commit, a pull request; each has its own folder, named after its commit."""
    repo = hub.repos["org/tiny"]
    files = dict(repo.revisions["main"])
    commit = repo.push({**files, "README.md": b"other"}, "v1", "feature/x", "refs/pr/1")
    for revision in ("v1", "feature/x", "refs/pr/1", commit):
        model = find_model(f"org/tiny@{revision}")
        assert (model.commit, model.pinned) == (commit, f"org/tiny@{commit}")
        assert (model.fetch() / "README.md").read_bytes() == b"other"
    assert downloads(hub) == SHARDS, "fetched once for all of them"
    assert commit_of(model_folder("org/tiny")) == repo.commit("main") != commit


def test_a_branch_that_moves_while_it_is_read(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The listing and the configuration would belong to two commits."""
    api, repo = huggingface_hub.HfApi, hub.repos["org/tiny"]

    class Slow(api):  # type: ignore[misc, valid-type]
        def model_info(self, *args: Any, **kwargs: Any) -> Any:
            found = super().model_info(*args, **kwargs)
            repo.push({**repo.revisions["main"], "README.md": b"new"})
            return found

    monkeypatch.setattr("experts.disk.hub.HfApi", Slow)
    with pytest.raises(
        ExciseError, match="org/tiny: changed on the hub while it was being read; run the command again"
    ):
        find_model("org/tiny")


# Refused before any weight comes.


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Path]:
    for name, sign in (("a", "x"), ("b", "y")):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(f"{sign}{number} " * 60 for number in range(12)))
    text = {"separator": r"(?<=\n)\n"}

    def write(**changes: Any) -> Path:
        data = {
            "model": "org/tiny",
            "dtype": "float32",
            "calibration": {"data": {"text": ["a.txt"], **text}, "sequences": 4, "length": 32},
            "criteria": ["reap"],
            "prune": {"fraction": 0.5, "protect_super_experts": False},
            "validate": {"data": {"text": ["b.txt"], **text}, "sequences": 4, "length": 32},
            **changes,
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(data))
        return path

    return write


def teacher(name: str) -> dict[str, Any]:
    return {"data": {"text": ["a.txt"]}, "sequences": 8, "teacher": {"model": name, "keep": "disk"}}


def said(*arguments: object) -> str:
    """What the command prints: one line, and exit 1."""
    done = CliRunner().invoke(app, [*map(str, arguments), "--quiet"])
    lines = [line for line in done.stderr.splitlines() if line.startswith("excise: ")]
    assert (done.exit_code, len(lines), done.stdout) == (1, 1, ""), (done.stderr, done.exception)
    return lines[0]


@pytest.mark.parametrize(
    ("command", "changes", "message"),
    [
        ("prune", {"criteria": ["raep"]}, "unknown criterion 'raep'"),
        ("prune", {"criteria": ["specialization"]}, "specialization compares domains"),
        ("prune", {"prune": {"fraction": 5.0}}, "prune.fraction is 5.0"),
        ("prune", {"prune": {"target_size": "1kB"}}, "prune.target_size is 1.00 kB"),
        ("prune", {"finetune": {**teacher("org/tiny"), "checkpoint": "x"}}, "`excise finetune` recovers it"),
        ("prune", {"finetune": teacher("org/mixtral")}, "has another architecture (model_type mixtral)"),
        ("prune", {"finetune": teacher("org/words")}, "has another vocabulary (tokenizer.json)"),
        (
            "prune",
            {"finetune": teacher("org/nope")},
            "org/nope: no such folder, and no such model on the hub",
        ),
        ("prune", {"validate": {"data": {"text": ["nofile.txt"]}}}, "nofile.txt: No such file or directory"),
        (
            "prune",
            {"finetune": {"data": {"jsonl": ["nofile.jsonl"]}}},
            "nofile.jsonl: No such file or directory",
        ),
        ("prune", {"model": "org/theirs"}, "knows no model_type 'theirs'"),
        ("prune", {"model": "org/code"}, "needs Python code that comes with the checkpoint"),
        ("prune", {"model": "org/mute"}, "org/mute: no tokenizer files"),
        ("compare", {"criteria": ["reap", "random", "reap_sum"]}, "validate.random_plans is 20"),
        (
            "audit",
            {"validate": {"data": {"text": ["b.txt"]}, "audit": {"layers": [7]}}},
            "validate.audit.layers: layer 7",
        ),
        (
            "audit",
            {"validate": {"data": {"text": ["b.txt"]}, "audit": {"positions": 3}}},
            "validate.audit.positions is 3",
        ),
        (
            "finetune",
            {"finetune": {"data": {"text": ["a.txt"]}, "checkpoint": "nowhere"}},
            "nowhere is not a folder",
        ),
    ],
)
def test_a_recipe_is_refused_before_any_weight_is_downloaded(
    command: str,
    changes: dict[str, Any],
    message: str,
    hub: FakeHub,
    recipe: Callable[..., Path],
    tmp_path: Path,
) -> None:
    odd_ones(hub)
    assert message in said(command, recipe(**changes), "-o", tmp_path / "run")
    assert not downloads(hub)
    assert hub.weight_bytes() <= 6 * HEADER


def odd_ones(hub: FakeHub) -> None:
    """Repositories that differ from org/tiny in what their names say."""
    files = hub.repos["org/tiny"].revisions["main"]
    config, words = json.loads(files["config.json"]), json.loads(files["tokenizer.json"])
    vocabulary = words["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    own = {"auto_map": {"AutoConfig": "theirs.Config"}}
    for name, changed in {
        "mixtral": {"config.json": {**config, "model_type": "mixtral"}},
        "words": {"tokenizer.json": words},
        "theirs": {"config.json": {**config, "model_type": "theirs"}, "tokenizer.json": {}},
        "code": {"config.json": {**config, "model_type": "theirs", **own}},
    }.items():
        hub.repos[f"org/{name}"] = Repo(
            {**files, **{file: json.dumps(data).encode() for file, data in changed.items()}}
        )
    silent = ("tokenizer", "hy.tiktoken")
    hub.repos["org/mute"] = Repo({name: data for name, data in files.items() if not name.startswith(silent)})


def test_an_output_that_is_there_is_refused_before_anything_is_asked(
    hub: FakeHub, recipe: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("x")
    assert "exists and is not a run of Excise" in said("prune", recipe(), "-o", tmp_path / "taken")
    assert "the name of the table must end in" in said(
        "effects", "org/tiny", "--text", tmp_path / "a.txt", "-o", tmp_path / "x.txt"
    )
    assert not hub.sent


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["effects", "org/tiny", "--layers", "9"], "--layers: layer 9 is dense or absent"),
        (["effects", "org/tiny", "--experts", "9"], "--experts: expert 9 is out of range"),
        (["effects", "org/tiny", "--text", "nofile.txt"], "nofile.txt: No such file or directory"),
        (["effects", "org/theirs"], "knows no model_type 'theirs'"),
        (["export", "org/tiny", "other.json", "out"], "the plan is for 4 experts|experts"),
        (["export", "org/tiny", "plan.json", "taken"], "taken: exists already"),
    ],
)
def test_effects_and_export_are_refused_before_any_weight_is_downloaded(
    arguments: list[str],
    message: str,
    hub: FakeHub,
    recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    odd_ones(hub)
    recipe()
    monkeypatch.chdir(tmp_path)
    plan = uniform_plan((0, 1, 2)).to_json()
    Path("plan.json").write_text(json.dumps(plan))
    Path("other.json").write_text(json.dumps({**plan, "experts": 16}))
    Path("taken").mkdir()
    more = (
        ["-o", "effects.csv", *([] if "--text" in arguments else ["--text", "a.txt"])]
        if arguments[0] == "effects"
        else []
    )
    assert any(part in said(*arguments, *more) for part in message.split("|"))
    assert not downloads(hub)


def test_no_room_for_the_download(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """Student and teacher together; what is in the cache needs no more."""
    hub.add("org/second", None, **hub.repos["org/tiny"].revisions["main"])
    one = find_model("org/tiny").needed()
    assert one == sum(
        len(data)
        for name, data in hub.repos["org/tiny"].revisions["main"].items()
        if name not in {*COPIES, "config.json", INDEX}
    )
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=one + 1))
    message = said("prune", recipe(finetune=teacher("org/second")), "-o", tmp_path / "run")
    assert "needed for org/tiny and org/second" in message
    assert "HF_HOME" in message
    assert not downloads(hub)
    model_folder("org/tiny")
    assert find_model("org/tiny").needed() == 0


def test_a_cache_that_cannot_be_written(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """Looking at a model needs no cache; fetching one is refused before it begins."""
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    assert inspect_model("org/tiny")["experts"] == 8
    message = said("prune", recipe(), "-o", tmp_path / "run")
    assert f"{tmp_path}/file/hub: cannot be written (Not a directory)" in message
    assert "HF_HOME" in message
    assert not downloads(hub)


def test_a_shared_cache_that_is_read_only(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The weights are there, the card is not and cannot be kept: a note, and the run goes on."""
    caplog.set_level("INFO", "excise")
    fetched = model_folder("org/tiny")
    (fetched / "README.md").unlink()
    monkeypatch.setattr("experts.disk.repository.unwritable", lambda folder=None: "Read-only file system")
    assert model_folder("org/tiny") == fetched
    assert "README.md cannot be kept in" in caplog.text


# Answers of the hub.


def test_a_gated_model(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated.add("org/tiny")
    with pytest.raises(
        ExciseError,
        match=(
            rf"accept their terms: do so at {hub.url}/org/tiny, then "
            rf"log in \(`hf auth login`, or HF_TOKEN\)"
        ),
    ):
        inspect_model("org/tiny")
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert inspect_model("org/tiny")["experts"] == 8


def test_what_is_not_there(hub: FakeHub) -> None:
    with pytest.raises(
        ExciseError,
        match="org/nope: no such folder, and no such model on the hub; if it is a private one, log in",
    ):
        inspect_model("org/nope")
    with pytest.raises(
        ExciseError, match="org/tiny@nope: the model on the hub has no branch, tag or commit 'nope'"
    ):
        inspect_model("org/tiny@nope")


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "does not accept the token"), (403, "refuses it to this account"), (400, "refuses the request")],
)
@pytest.mark.parametrize("where", ["GET /api/models", "HEAD .*config.json", "GET .*00002-of"])
def test_refusals(status: int, message: str, where: str, hub: FakeHub) -> None:
    hub.fail(where, status)
    with pytest.raises(ExciseError, match=f"org/tiny: the hub {message}"):
        model_folder("org/tiny")


# A whole run.


def test_a_whole_run_keeps_the_licence_and_the_commit(
    hub: FakeHub, recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """And its recipe, run again after the repository went on, reads the same weights."""
    commit = hub.repos["org/tiny"].commit()
    out = tmp_path / "run"
    result = Run(prepare(read_recipe(recipe(model="https://hf.co/org/tiny/")), out)).execute().result
    assert result["model"]["name"] == "org/tiny"
    assert result["model"]["commit"] == commit
    front = yaml.safe_load((out / "checkpoint" / "README.md").read_text().split("---\n")[1])
    assert (front["base_model"], front["base_model_revision"]) == ("org/tiny", commit)
    assert (front["license"], front["license_name"], front["language"]) == ("other", "tiny", "en")
    for name in ("LICENSE", "NOTICE", "hy.tiktoken", "tokenizer.json"):
        assert (out / "checkpoint" / name).is_file(), name
    kept = yaml.safe_load((out / "recipe.yaml").read_text())
    assert kept["model"] == f"org/tiny@{commit}"
    hub.repos["org/tiny"].push({"config.json": b"{}"})
    again = prepare(read_recipe(out / "recipe.yaml"), tmp_path / "again")
    assert again.fingerprint == result["model"]["fingerprint"]


def test_the_teacher_is_fetched_once_and_recorded(
    hub: FakeHub, recipe: Callable[..., Path], tmp_path: Path
) -> None:
    hub.add("org/second", None, **hub.repos["org/tiny"].revisions["main"], **{"extra.txt": b"another commit"})
    prepared = prepare(read_recipe(recipe(finetune=teacher("org/second"))), tmp_path / "run")
    commit = hub.repos["org/second"].commit()
    assert prepared.teacher is not None
    assert commit_of(prepared.teacher) == commit
    assert prepared.recipe.finetune is not None
    assert prepared.recipe.finetune.teacher.model == f"org/second@{commit}"
