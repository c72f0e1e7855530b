"""Two views of one folder: the export and the fingerprint read files, transformers makes a model of them.

They must agree.
"""

import itertools
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.distributed.checkpoint import get_distributed_checkpoint_dir
from transformers.modeling_utils import _get_resolved_checkpoint_files
from transformers.utils.peft_utils import find_adapter_config_file
from typer.testing import CliRunner

from experts.disk import fingerprint as identity
from experts.disk.fingerprint import KNOWN_FILE, fingerprint
from experts.disk.layout import lay_out
from experts.disk.shards import open_checkpoint
from experts.disk.weight_files import (
    ADAPTER_CONFIG,
    INDEX_FILE,
    SINGLE_SHARD,
    entry_file,
    is_index,
    regular_files,
    shard_names,
)
from experts.errors import ExciseError
from experts.loading import load_network
from prune.checkpoint.provenance import pruned_plan
from prune.checkpoint.write import export, export_notes
from prune.console.cli import app
from tests.support import tiny
from tests.support.inputs import uniform_plan

SHARD, NAMED, PICKLE = "model-00001-of-00001.safetensors", "other.safetensors", "pytorch_model.bin"
DISTRIBUTED = "shard-00000-model-00001-of-00001.safetensors"


def theirs(folder: Path, named: str | None) -> list[str] | None:
    """What transformers reads: names of files; None where it finds nothing."""
    if get_distributed_checkpoint_dir(str(folder), "", None, None):
        return [DISTRIBUTED]
    try:
        files, _ = _get_resolved_checkpoint_files(str(folder), None, None, None, None, False, named)
    except (OSError, ValueError):
        return None
    assert files is not None
    return [Path(file).name for file in files]


def ours(folder: Path, config: dict[str, Any]) -> list[str]:
    entry = entry_file(regular_files(folder), config, str(folder))
    return shard_names(json.loads((folder / entry).read_text()), entry) if is_index(entry) else [entry]


def place(folder: Path, name: str, kind: str) -> None:
    """kind: file, link (to a file elsewhere, as in the hub's cache), broken (a link to nothing), folder, or
    absent.
    """
    path, blob = folder / name, folder.parent / f"blob-{name}"
    content = json.dumps({"metadata": {}, "weight_map": {"w": SHARD}}) if name == INDEX_FILE else "x"
    match kind:
        case "file":
            path.write_text(content)
        case "link":
            blob.write_text(content)
            path.symlink_to(blob)
        case "broken":
            path.symlink_to(folder.parent / "gone")
        case "folder":
            path.mkdir()


KINDS = ("absent", "file", "link", "broken", "folder")
SHAPES = [
    shape
    for shape in itertools.product(
        KINDS, KINDS, ("absent", "file"), (None, NAMED, INDEX_FILE), (False, True), (False, True)
    )
    if shape.count("folder") + shape.count("broken") <= 1
]


def test_every_folder_shape_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    """Single file and index there, linked, dangling or folders; named in config.json; beside pickles,
    distributed shards.
    """
    read, refused = 0, 0
    for number, (single, index, other, named, pickled, distributed) in enumerate(SHAPES):
        folder = tmp_path / str(number) / "model"
        folder.mkdir(parents=True)
        for name, kind in ((SINGLE_SHARD, single), (INDEX_FILE, index), (SHARD, "file"), (NAMED, other)):
            place(folder, name, kind)
        for name, there in ((PICKLE, pickled), (DISTRIBUTED, distributed)):
            place(folder, name, "file" if there else "absent")
        config = {"transformers_weights": named} if named else {}
        found = theirs(folder, named)
        try:
            chosen = ours(folder, config)
        except ExciseError:
            # `transformers_weights` is taken without a look whether the file is there.
            missing = named is not None and named not in regular_files(folder)
            assert found is None or missing or found in ([PICKLE], [DISTRIBUTED]), SHAPES[number]
            refused += 1
        else:
            assert chosen == found, SHAPES[number]
            read += 1
    assert read > 50
    assert refused > 50


def test_an_adapter_is_found_where_transformers_finds_it(tmp_path: Path) -> None:
    for kind in KINDS:
        folder = tmp_path / kind / "model"
        folder.mkdir(parents=True)
        place(folder, SINGLE_SHARD, "file")
        place(folder, ADAPTER_CONFIG, kind)
        if find_adapter_config_file(str(folder)) is None:
            assert ours(folder, {}) == [SINGLE_SHARD]
        else:
            with pytest.raises(ExciseError, match="holds an adapter"):
                ours(folder, {})


@given(
    st.text(max_size=20)
    | st.integers()
    | st.lists(st.text(max_size=4), max_size=2)
    | st.none()
    | st.booleans()
)
def test_any_named_file_stays_in_the_folder_or_is_refused(named: Any) -> None:
    config = {"transformers_weights": named}
    try:
        entry = entry_file({SINGLE_SHARD, "a.safetensors"}, config, "m")
    except ExciseError as error:
        assert "\n" not in str(error)
    else:
        assert entry in {SINGLE_SHARD, "a.safetensors"}


def moved(folder: Path, source: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Adds 1 to every weight of a checkpoint in one file; gives the weights."""
    changed = {name: value + 1 for name, value in load_file(source / SINGLE_SHARD).items()}
    save_file(changed, folder / SINGLE_SHARD, metadata={"format": "pt"})
    return changed


def test_a_single_file_hides_an_older_index_and_its_shards(tmp_path: Path) -> None:
    """Measured and exported are the weights of the single file; a note says which files nobody reads."""
    folder = tiny.save(tiny.build("olmoe"), tmp_path / "model", max_shard_size="60KB")
    newer = moved(folder, tiny.save(tiny.build("olmoe"), tmp_path / "one"))
    loaded = load_network(folder).state_dict()["model.embed_tokens.weight"]
    torch.testing.assert_close(loaded, torch.from_numpy(newer["model.embed_tokens.weight"]), rtol=0, atol=0)
    layout = lay_out(open_checkpoint(folder))
    plan = uniform_plan(layout.shape.layers)
    export(layout, plan, tmp_path / "out")
    written = load_file(tmp_path / "out" / SINGLE_SHARD)
    np.testing.assert_array_equal(written["model.embed_tokens.weight"], newer["model.embed_tokens.weight"])
    assert not (tmp_path / "out" / INDEX_FILE).exists()
    assert any(
        f"{SINGLE_SHARD} is read" in note and INDEX_FILE in note for note in export_notes(layout, plan)
    )


def test_an_index_without_its_shards_does_no_harm_beside_a_single_file(tmp_path: Path) -> None:
    folder = tiny.save(tiny.build("olmoe"), tmp_path / "model")
    before = fingerprint(open_checkpoint(folder))
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": {"w": "gone.safetensors"}}))
    assert fingerprint(open_checkpoint(folder)) == before


def test_a_file_named_in_config_is_read_fingerprinted_and_exported(tmp_path: Path) -> None:
    """The export keeps the name, so that plain transformers reads the pruned weights and not a left-over."""
    folder = tiny.save(tiny.build("olmoe"), tmp_path / "model")
    other = fingerprint(open_checkpoint(folder))
    changed = {name: value + 1 for name, value in load_file(folder / SINGLE_SHARD).items()}
    save_file(changed, folder / NAMED, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": NAMED}))
    assert fingerprint(open_checkpoint(folder)) != other
    layout = lay_out(open_checkpoint(folder))
    export(layout, uniform_plan(layout.shape.layers), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected = torch.from_numpy(changed["model.embed_tokens.weight"])
    torch.testing.assert_close(model.get_input_embeddings().weight.detach(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("command", ["prune", "compare", "audit", "finetune", "effects", "export", "inspect"])
def test_an_adapter_beside_the_weights_is_refused_before_any_work(command: str, tmp_path: Path) -> None:
    """transformers would load base and adapter; the base alone would be written."""
    model = tiny.build("olmoe")
    folder = tiny.save(model, tmp_path / "model")
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(str(folder))
    text = tmp_path / "text.txt"
    text.write_text("a b c " * 4000)
    recipe = tmp_path / "recipe.yaml"
    part = f"{{data: {{text: {text}}}, length: 24, sequences: 8}}"
    recipe.write_text(
        f"model: {folder}\ncalibration: {part}\nvalidate: {part}\nprune: {{keep: 4}}\nfinetune: {part}\n"
    )
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(uniform_plan((0, 1, 2)).to_json()))
    arguments = {
        "effects": [str(folder), "--text", str(text), "-o", str(tmp_path / "e.csv")],
        "export": [str(folder), str(plan), str(tmp_path / "out")],
        "inspect": [str(folder)],
    }.get(command, [str(recipe), "-o", str(tmp_path / "run")])
    result = CliRunner().invoke(app, [command, *arguments])
    assert result.exit_code == 1
    assert "holds an adapter (adapter_config.json)" in result.stderr
    assert "merge_and_unload" in result.stderr
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "out").exists()


def test_load_refuses_what_the_export_would_read_differently(tmp_path: Path) -> None:
    folder = tiny.save(tiny.build("olmoe"), tmp_path / "model")
    (folder / DISTRIBUTED).write_bytes(b"x")
    for read in (load_network, open_checkpoint):
        with pytest.raises(
            ExciseError, match=r"belongs to a distributed checkpoint, which is loaded instead"
        ):
            read(folder)
    (folder / DISTRIBUTED).unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "configuration_files": ["config.4.0.0.json"]}))
    (folder / "config.4.0.0.json").write_text(json.dumps({**config, "num_experts_per_tok": 1}))
    for read in (load_network, open_checkpoint):
        with pytest.raises(ExciseError, match="names other configurations"):
            read(folder)


def test_the_fingerprint_covers_code_that_config_names(tmp_path: Path) -> None:
    """A file of code changes the model where config.json leads to it, and only there."""
    folder = tiny.save(tiny.build("olmoe"), tmp_path / "model")
    plain = fingerprint(open_checkpoint(folder))
    (folder / "modeling_own.py").write_text("one = 1\n")
    assert fingerprint(open_checkpoint(folder)) == plain
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}})
    )
    first = fingerprint(open_checkpoint(folder))
    (folder / "modeling_own.py").write_text("one = 2\n")
    second = fingerprint(open_checkpoint(folder))
    assert len({plain, first, second}) == 3


# Identity: every byte counts.


def edited(folder: Path, keep_times: bool = False) -> None:
    """One bit in the middle of the largest tensor of a folder."""
    path, before = folder / SINGLE_SHARD, (folder / SINGLE_SHARD).stat()
    tensor = max(open_checkpoint(folder).tensors.values(), key=lambda tensor: tensor.size)
    with path.open("r+b") as file:
        file.seek((tensor.start + tensor.end) // 2 + 1)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    if keep_times:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A model whose embedding takes 260 KiB, last changed an hour ago."""
    folder = tiny.save(tiny.build("olmoe", hidden_size=256), tmp_path / "large")
    hour_ago = time.time() - 3600
    os.utime(folder / SINGLE_SHARD, (hour_ago, hour_ago))
    return folder


@pytest.mark.parametrize("keep_times", [False, True])
def test_one_bit_in_the_middle_is_another_model(keep_times: bool, large: Path) -> None:
    """Also where the time of the last writing was set back."""
    before = fingerprint(open_checkpoint(large))
    assert fingerprint(open_checkpoint(large)) == before
    edited(large, keep_times)
    assert fingerprint(open_checkpoint(large)) != before


def test_what_was_read_is_remembered_and_only_then_not_read_again(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    digest_ranges = identity.digest_ranges
    monkeypatch.setattr(
        identity, "digest_ranges", lambda file, *rest: (read.append(file), digest_ranges(file, *rest))
    )
    first = fingerprint(open_checkpoint(large))
    assert (fingerprint(open_checkpoint(large)), len(read)) == (first, 1)
    copy = shutil.copytree(large, tmp_path / "copy")
    assert (fingerprint(open_checkpoint(copy)), len(read)) == (first, 2)
    for damage in ("{", "[]", '{"x": 3}'):
        (tmp_path / "cache" / KNOWN_FILE).write_text(damage)
        assert fingerprint(open_checkpoint(large)) == first
    monkeypatch.setenv("EXCISE_CACHE", "/dev/null/cache")
    assert fingerprint(open_checkpoint(large)) == first


def test_a_pruned_folder_is_compared_byte_by_byte(large: Path, tmp_path: Path) -> None:
    layout = lay_out(open_checkpoint(large))
    export(layout, uniform_plan(layout.shape.layers), tmp_path / "pruned")
    print_of = fingerprint(layout.checkpoint)
    assert pruned_plan(tmp_path / "pruned", layout, print_of) == uniform_plan(layout.shape.layers)
    edited(tmp_path / "pruned")
    with pytest.raises(ExciseError, match="was it trained or edited since"):
        pruned_plan(tmp_path / "pruned", layout, print_of)
