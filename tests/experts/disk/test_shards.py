"""The safetensors reader: agrees with the reference reader, refuses every damage with the file's or tensor's
name.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from experts.disk.fingerprint import fingerprint
from experts.disk.shards import open_checkpoint, read_header
from experts.errors import ExciseError

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array(7, dtype=np.int64),
    "c": np.zeros((0, 4), np.float16),
}


def shard(folder: Path, name: str = "model.safetensors") -> Path:
    save_file(TENSORS, folder / name, metadata={"format": "pt"})
    return folder / name


def rewrite(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the header's JSON and leaves the data alone."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    text = edit(header) or json.dumps(header)
    path.write_bytes(len(text.encode()).to_bytes(8, "little") + text.encode() + raw[8 + length :])


def test_agrees_with_the_reference_reader(tmp_path: Path) -> None:
    path = shard(tmp_path)
    tensors, metadata = read_header(path)
    raw = path.read_bytes()
    with safe_open(path, "numpy") as reference:
        assert metadata == reference.metadata()
        assert set(tensors) == set(reference.keys())
        for name, stored in tensors.items():
            expected = reference.get_tensor(name)
            assert stored.shape == expected.shape
            assert raw[stored.start : stored.end] == expected.tobytes()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda h: h["a"].update(data_offsets=[0, 20]),
            r"tensor a: F32 \[2, 3\] needs 24 bytes, the header gives it 20",
        ),
        (lambda h: h["a"].update(shape=[2, 4]), "needs 32 bytes"),
        (lambda h: h["a"].update(dtype="F7"), "unknown dtype"),
        (lambda h: h["a"].update(shape=[2, -3]), "malformed"),
        (lambda h: h["a"].update(data_offsets=[True, 24]), "malformed"),
        (lambda h: h["a"].pop("shape"), r"tensor a: malformed header entry \(KeyError"),
        (lambda h: h["a"].update(data_offsets=[10**15, 10**15 + 24]), "leaves a hole|truncated"),
        (lambda h: h["a"].update(data_offsets=[4, 28]), "tensor . overlaps the one before it"),
        (lambda h: h.pop("a"), "hole|belong to nothing"),
        (lambda h: h.update(__metadata__=3), "__metadata__"),
        (lambda h: h.update(__metadata__={"a": 5}), "__metadata__"),
        (lambda h: '{"a": 1, "a": 2}', "names a twice"),
        (lambda h: "[1]", "expected a JSON object"),
        (lambda h: '{"a": ', "not valid JSON"),
        (lambda h: "[" * 100_000, "not valid JSON"),
    ],
)
def test_damaged_headers_are_refused(
    tmp_path: Path, edit: Callable[[dict[str, Any]], Any], message: str
) -> None:
    path = shard(tmp_path)

    def quiet(header: dict[str, Any]) -> Any:
        found = edit(header)
        return found if isinstance(found, str) else None

    rewrite(path, quiet)
    with pytest.raises(ExciseError, match=message) as caught:
        read_header(path)
    assert str(path) in str(caught.value)


def test_lengths_that_lie(tmp_path: Path) -> None:
    path = shard(tmp_path)
    raw = path.read_bytes()
    for content, message in [
        (raw[:-4], r"truncated: tensor . ends at byte"),
        (raw[:6], "truncated or damaged"),
        (b"", "truncated or damaged"),
        ((2**63).to_bytes(8, "little") + raw[8:], "header claims 9223372036854775808 bytes"),
        (raw + b"xx", "2 bytes behind the last tensor belong to nothing"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ExciseError, match=message):
            read_header(path)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_corruption_never_crashes(tmp_path: Path, data: st.DataObject) -> None:
    """Any byte of the header changed: refused with an ExciseError, or still a well-formed file of the same
    length.
    """
    path = shard(tmp_path)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, 8 + int.from_bytes(raw[:2], "little") - 1)) % len(raw)] = data.draw(
            st.integers(0, 255)
        )
    path.write_bytes(raw)
    try:
        tensors, _ = read_header(path)
    except ExciseError as error:
        assert str(path) in str(error)
    else:
        assert all(0 <= tensor.start <= tensor.end <= len(raw) for tensor in tensors.values())


def checkpoint(folder: Path) -> Path:
    (folder / "config.json").write_text('{"model_type": "olmoe"}')
    shard(folder, "model-00001-of-00002.safetensors")
    save_file({"d": np.ones(3, np.float32)}, folder / "model-00002-of-00002.safetensors")
    names = dict.fromkeys(TENSORS, "model-00001-of-00002.safetensors") | {
        "d": "model-00002-of-00002.safetensors"
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder


def test_sharded_checkpoint(tmp_path: Path) -> None:
    found = open_checkpoint(checkpoint(tmp_path))
    assert set(found.tensors) == {"a", "b", "c", "d"}
    assert found.size == 24 + 8 + 0 + 12


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            lambda f: (f / "model-00002-of-00002.safetensors").unlink(),
            r"model-00002-of-00002\.safetensors: the shard is missing",
        ),
        (lambda f: (f / "config.json").unlink(), r"config\.json: no such file"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json: not valid JSON"),
        (lambda f: (f / "config.json").write_bytes(b"\xff"), r"config\.json: not valid JSON"),
        (lambda f: (f / "config.json").write_text("[]"), r"config\.json: expected a JSON object, found list"),
        (lambda f: edit_index(f, {"a": "../evil.safetensors"}), "not a plain"),
        (lambda f: edit_index(f, {"a": "/etc/passwd"}), "not a plain"),
        (lambda f: edit_index(f, {"e": "model-00001-of-00002.safetensors"}), "tensor e should be in"),
        (lambda f: shard(f, "model-00002-of-00002.safetensors"), "is in another shard too"),
    ],
)
def test_broken_checkpoints_are_refused(
    tmp_path: Path, break_it: Callable[[Path], Any], message: str
) -> None:
    break_it(checkpoint(tmp_path))
    with pytest.raises(ExciseError, match=message):
        open_checkpoint(tmp_path)


def edit_index(folder: Path, change: dict[str, str]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"].update(change)
    path.write_text(json.dumps(index))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ExciseError, match="not a safetensors checkpoint"):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ExciseError, match="only pickled weights"):
        open_checkpoint(tmp_path)


def test_fingerprint_sees_every_tensor(tmp_path: Path) -> None:
    """A change in one element of any tensor up to 64 KiB, or of all elements of a larger one, is another
    model.
    """
    rng = np.random.default_rng(0)
    whole = {f"t{i}": rng.normal(size=(40, 40)).astype(np.float32) for i in range(5)} | {
        "large": rng.normal(size=(300, 300)).astype(np.float32)
    }
    (tmp_path / "config.json").write_text("{}")
    seen = set()
    for name in (None, *whole):
        changed = {key: value.copy() for key, value in whole.items()}
        if name == "large":
            changed[name] += 1e-3
        elif name:
            changed[name][17, 3] += 1e-3
        save_file(changed, tmp_path / "model.safetensors")
        seen.add(fingerprint(open_checkpoint(tmp_path)))
    assert len(seen) == 7


def test_fingerprint_sees_values_and_configuration(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    before = fingerprint(open_checkpoint(folder))
    assert before == fingerprint(open_checkpoint(folder))
    save_file({"d": np.full(3, 2, np.float32)}, folder / "model-00002-of-00002.safetensors")
    changed = fingerprint(open_checkpoint(folder))
    (folder / "config.json").write_text('{"model_type": "mixtral"}')
    assert len({before, changed, fingerprint(open_checkpoint(folder))}) == 3
