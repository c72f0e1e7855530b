"""Shards and configurations at random: what is written reads back, also by the reference reader; what is
damaged is refused in one line.

Only ExciseError may escape. The seed is fixed, so that every run tries the same examples.
"""

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from criteria.budget import from_fraction
from experts.disk import strict_json
from experts.disk.fingerprint import fingerprint
from experts.disk.layout import lay_out
from experts.disk.shards import (
    BITS,
    INDEX_FILE,
    LONGEST_NAME,
    MOST_AXES,
    SINGLE_SHARD,
    Stored,
    open_checkpoint,
    read_header,
)
from experts.errors import ExciseError
from experts.plan import Plan
from prune.checkpoint.shard_files import header
from prune.checkpoint.slices import NewTensor
from prune.checkpoint.write import export
from prune.inspect import summary

WHOLE_BYTES = {dtype: bits // 8 for dtype, bits in BITS.items() if bits % 8 == 0}
FIXED = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
NAMES = st.text(st.characters(exclude_categories=("Cs",)), max_size=20).filter(
    lambda name: name != "__metadata__"
)
SHAPES = st.lists(st.integers(0, 5), max_size=4)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(2**60, 2**70)
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, tuple[str, list[int], bytes]]:
    """Name -> dtype, shape, bytes."""
    found = {}
    for name in draw(st.lists(NAMES, unique=True, max_size=6)):
        dtype, shape = draw(st.sampled_from(sorted(WHOLE_BYTES))), draw(SHAPES)
        length = WHOLE_BYTES[dtype] * math.prod(shape)
        found[name] = (
            dtype,
            shape,
            draw(st.binary(min_size=length, max_size=length)) if length < 64 else bytes(range(256)) * length,
        )
        found[name] = (dtype, shape, found[name][2][:length])
    return found


def write(path: Path, stored: dict[str, tuple[str, list[int], bytes]], metadata: dict[str, str]) -> None:
    """By the export's own header writer, as if every tensor were kept whole."""
    pieces = [
        NewTensor(
            name,
            dtype,
            tuple(shape),
            Stored(name, dtype, tuple(shape), path, 0, len(data)),
            ((0, len(data)),),
        )
        for name, (dtype, shape, data) in stored.items()
    ]
    path.write_bytes(header(pieces, metadata) + b"".join(data for _, _, data in stored.values()))


@settings(FIXED, max_examples=300)
@given(stored=tensors(), metadata=st.dictionaries(NAMES, NAMES, max_size=3))
def test_what_is_written_reads_back(
    stored: dict[str, tuple[str, list[int], bytes]], metadata: dict[str, str], tmp_path: Path
) -> None:
    """By our reader and by the reference: names, types, shapes, bytes, metadata."""
    path = tmp_path / "x.safetensors"
    write(path, stored, metadata)
    found, meta = read_header(path)
    raw = path.read_bytes()
    assert int.from_bytes(raw[:8], "little") % 8 == 0, "the data is aligned, as the reference writer has it"
    assert {name: (t.dtype, list(t.shape), raw[t.start : t.end]) for name, t in found.items()} == stored
    assert meta == metadata
    with safe_open(path, "numpy") as reference:
        assert set(reference.keys()) == set(stored)
        assert (reference.metadata() or {}) == metadata
        for name, (dtype, shape, data) in stored.items():
            piece = reference.get_slice(name)
            assert (piece.get_dtype(), piece.get_shape()) == (dtype, shape)
            if dtype in ("BOOL", "U8", "I8", "I16", "U16", "F16", "I32", "U32", "F32", "I64", "U64", "F64"):
                assert reference.get_tensor(name).tobytes() == data


def check_consistent(path: Path) -> bool:
    """Refused with a line that names the file, or every tensor lies inside it, one after the other.

    Gives whether it was read.
    """
    size = path.stat().st_size
    try:
        found, metadata = read_header(path)
    except ExciseError as error:
        assert str(path) in str(error)
        assert len(str(error)) < 5_500, (
            "a line, not a file; the longest name that is let in has 4096 characters"
        )
        return False
    position = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    for tensor in sorted(found.values(), key=lambda tensor: (tensor.start, tensor.end)):
        assert tensor.start == position
        assert tensor.size * 8 == BITS[tensor.dtype] * math.prod(tensor.shape)
        position = tensor.end
    assert position == size
    json.dumps([*found, metadata], ensure_ascii=False).encode()
    return True


EXAMPLE = {
    "a.weight": ("F32", [2, 3], bytes(range(24))),
    "b": ("I64", [], bytes(8)),
    "c é": ("BF16", [0, 4], b""),
}


@settings(FIXED, max_examples=400)
@given(data=st.data())
def test_damaged_shards(data: st.DataObject, tmp_path: Path) -> None:
    """Bytes changed, cut away, or put in between."""
    path = tmp_path / "x.safetensors"
    write(path, EXAMPLE, {"format": "pt"})
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw)))
        match data.draw(st.sampled_from(["change", "cut", "truncate", "insert"])):
            case "change":
                raw[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1))
            case "cut":
                del raw[at : at + data.draw(st.integers(1, 9))]
            case "truncate":
                del raw[at:]
            case _:
                raw[at:at] = data.draw(
                    st.binary(min_size=1, max_size=9)
                    | st.sampled_from([b'"', b"{", b"]", b"9" * 9, b"\\ud800", b"NaN"])
                )
    path.write_bytes(raw)
    check_consistent(path)


@settings(FIXED, max_examples=300)
@given(raw=st.binary(max_size=200), honest=st.booleans())
def test_files_of_random_bytes(raw: bytes, honest: bool, tmp_path: Path) -> None:
    """honest: a length in front that fits."""
    path = tmp_path / "x.safetensors"
    path.write_bytes((len(raw).to_bytes(8, "little") if honest else b"") + raw)
    check_consistent(path)


LITERALS = ["NaN", "Infinity", "-Infinity", "-1", "1.5", "1e3", "1e999", "9" * 5000, "9" * 19, "true",
            "null", '"8"', '"\\ud800"', "[]", "{}", "[" * 300 + "]" * 300,
            "[" * 5000 + "]" * 5000, "[0,0]", '{"0":1,"1":2}', "0"]  # fmt: skip


@pytest.mark.slow
@settings(FIXED, max_examples=400)
@given(data=st.data())
def test_headers_of_odd_values(data: st.DataObject, tmp_path: Path) -> None:
    """Every place of a header may hold anything JSON, and some things that are none."""
    odd = st.sampled_from(LITERALS) | JSON.map(json.dumps)
    number = st.sampled_from(["0", "2", "3", "24", "8"]) | odd
    listed = {"shape": st.lists(number, max_size=3), "data_offsets": st.lists(number, min_size=1, max_size=3)}
    names = st.sampled_from(['"a"', '"b"', '"\\ud800"', '"__metadata__"', '""', '"' + "n" * 5000 + '"'])
    entries = []
    for name in data.draw(st.lists(names, max_size=3)):
        dtype = data.draw(st.sampled_from(['"F32"', '"F4"', '"I64"']) | odd)
        values = {
            key: data.draw(odd | items.map(lambda found: "[" + ",".join(found) + "]"))
            for key, items in listed.items()
        }
        inside = ", ".join(f'"{key}": {value}' for key, value in {"dtype": dtype, **values}.items())
        entries.append(f"{name}: {data.draw(odd | st.just('{' + inside + '}'))}")
    raw = ("{" + ", ".join(entries) + "}").encode("utf-8", "surrogatepass")
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(data.draw(st.sampled_from([0, 8, 24]))))
    check_consistent(path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            '{"dtype": "F32", "shape": [' + "9" * 4000 + "," + "9" * 4000 + '], "data_offsets": [0, 0]}',
            "malformed",
        ),
        ('{"dtype": "F32", "shape": [' + "9" * 5000 + '], "data_offsets": [0, 0]}', "not valid JSON"),
        (
            '{"dtype": "F32", "shape": [' + ",".join(["9" * 18] * 200) + '], "data_offsets": [0, 0]}',
            "malformed",
        ),
        ('{"dtype": "F32", "shape": {}, "data_offsets": [0, 4]}', "malformed"),
        ('{"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}', "malformed"),
        ('{"dtype": "F32", "shape": [1], "data_offsets": {"0": 0, "4": 4}}', "malformed"),
        ('{"dtype": ' + "[" * 90 + "]" * 90 + ', "shape": [1], "data_offsets": [0, 4]}', "malformed"),
        (
            '{"dtype": ' + "[" * 200 + "]" * 200 + ', "shape": [1], "data_offsets": [0, 4]}',
            "nested deeper than 100 levels",
        ),
        ('{"dtype": "' + "F" * 9000 + '", "shape": [1], "data_offsets": [0, 4]}', "malformed"),
        ('{"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}', "NaN is no JSON"),
        ('{"dtype": "F32", "shape": [1], "shape": [1], "data_offsets": [0, 4]}', "names shape twice"),
        ('{"dtype": "F\\ud800", "shape": [1], "data_offsets": [0, 4]}', "surrogates not allowed"),
    ],
)
def test_headers_that_once_crashed_or_passed(entry: str, message: str, tmp_path: Path) -> None:
    raw = f'{{"a": {entry}}}'.encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(4))
    with pytest.raises(ExciseError, match=message):
        read_header(path)
    assert not check_consistent(path)


def test_limits_of_names_and_axes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for characters, axes, fine in [
        (LONGEST_NAME, MOST_AXES, True),
        (LONGEST_NAME + 1, 1, False),
        (1, MOST_AXES + 1, False),
    ]:
        write(path, {"n" * characters: ("F32", [1] * axes, bytes(4))}, {})
        assert check_consistent(path) is fine


# Whole folders: configuration, index, layout.

EXPERTS = 8
CONFIG = {
    "model_type": "olmoe",
    "architectures": ["OlmoeForCausalLM"],
    "num_hidden_layers": 2,
    "num_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "num_nextn_predict_layers": 1,
    "n_shared_experts": 1,
    "auto_map": None,
    "text_config": None,
    "topk_method": None,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards and an index: two MoE layers and one behind them."""
    root = tmp_path / "model"
    root.mkdir()
    shards: dict[str, dict[str, tuple[str, list[int], bytes]]] = {
        "model-1.safetensors": {},
        "model-2.safetensors": {},
    }
    for layer in range(3):
        inside = shards["model-2.safetensors" if layer == 1 else "model-1.safetensors"]
        inside[f"model.layers.{layer}.mlp.gate.weight"] = ("F32", [EXPERTS, 2], bytes(range(8 * EXPERTS)))
        for expert in range(EXPERTS):
            inside[f"model.layers.{layer}.mlp.experts.{expert}.up_proj.weight"] = (
                "BF16",
                [2, 2],
                bytes([expert] * 8),
            )
    for name, inside in shards.items():
        write(root / name, inside, {"format": "pt"})
    weights = {tensor: name for name, inside in shards.items() for tensor in inside}
    (root / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    (root / "config.json").write_text(json.dumps(CONFIG))
    return root


def use(folder: Path, kept: dict[int, tuple[int, ...]]) -> bool:
    """Everything that Excise does with a folder without torch; gives whether it got through.

    Only ExciseError may escape.
    """
    out = folder.parent / "out"
    try:
        checkpoint = open_checkpoint(folder)
        layout = lay_out(checkpoint)
        json.dumps(summary(layout), ensure_ascii=False).encode()
        from_fraction(layout.shape, 0.25, "global")
        export(layout, Plan(layout.shape.num_experts, kept), out, fingerprint=fingerprint(checkpoint))
    except ExciseError as error:
        assert str(error).strip()
        assert not out.exists()
        return False
    written = open_checkpoint(out).tensors
    shutil.rmtree(out)
    assert {int(name.split(".")[5]) for name in written if ".experts." in name} == set(
        range(max(map(len, kept.values())))
    )
    return True


EVEN, UNEVEN = {0: (0, 2, 5, 7), 1: (1, 2, 4, 6)}, {0: (0, 2, 5, 7), 1: (1, 2, 6)}


def test_the_example_gets_through(folder: Path) -> None:
    """What the next tests damage is sound."""
    assert use(folder, EVEN)
    assert use(folder, UNEVEN)


ODD = [-1, 0, 1, 3, 7, 8, 9, 2**40, 2**63, 10**18, 10**4000, 1.0, 8.0, float("nan"), float("inf"), True,
       False, None, "8", "", [], [8], {},
       {"num_experts": 8}, ["x", 1], {"a": {"b": [None]}}, "\ud800"]  # fmt: skip


@pytest.mark.slow
@settings(FIXED, max_examples=250)
@given(
    changes=st.dictionaries(
        st.sampled_from(sorted(CONFIG)), st.sampled_from(ODD) | JSON, min_size=1, max_size=3
    ),
    dropped=st.sets(st.sampled_from(sorted(CONFIG)), max_size=1),
    nested=st.booleans(),
    kept=st.sampled_from([EVEN, UNEVEN]),
)
def test_odd_configurations(
    changes: dict[str, Any], dropped: set[str], nested: bool, kept: dict[int, tuple[int, ...]], folder: Path
) -> None:
    config = {key: value for key, value in {**CONFIG, **changes}.items() if key not in dropped}
    if nested:
        config = {
            "model_type": "wrapper",
            "text_config": config,
            **{key: changes[key] for key in changes if key in ("architectures", "auto_map")},
        }
    (folder / "config.json").write_text(json.dumps(config))
    use(folder, kept)


@pytest.mark.parametrize("name", ["config.json", INDEX_FILE])
@settings(FIXED, max_examples=200)
@given(data=st.data())
def test_damaged_json(data: st.DataObject, name: str, folder: Path) -> None:
    """Bytes changed, cut away or put in between, in the configuration and in the index."""
    before = (folder / name).read_bytes()
    raw = bytearray(before)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw)))
        if data.draw(st.booleans()):
            raw[at : at + data.draw(st.integers(0, 6))] = data.draw(st.binary(max_size=4))
        else:
            raw[at:at] = data.draw(
                st.sampled_from(
                    [
                        b"0",
                        b"-",
                        b"[",
                        b'"',
                        b"\\ud800",
                        b"\\n",
                        b"NaN",
                        b"../",
                        b"\x00",
                        b"\xff",
                        b"9" * 5000,
                    ]
                )
            )
    (folder / name).write_bytes(raw)
    try:
        use(folder, EVEN)
    finally:
        (folder / name).write_bytes(before)


@settings(FIXED, max_examples=300)
@given(
    weights=st.dictionaries(
        st.text(max_size=6), st.text(max_size=6).map(lambda name: name + ".safetensors") | JSON, max_size=3
    )
    | JSON
)
def test_odd_indices(weights: Any, folder: Path) -> None:
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": weights}))
    assert not use(folder, EVEN)


@settings(FIXED, max_examples=200)
@given(data=st.data())
def test_odd_names_and_shapes(data: st.DataObject, tmp_path: Path) -> None:
    """Tensors that almost look like experts and routers."""
    root = tmp_path / "odd"
    root.mkdir(exist_ok=True)
    number = st.sampled_from(["0", "1", "2", "7", "01", "٣", "-1", "9" * 30, "9" * 4090, "x", ""])
    part = st.sampled_from(
        [
            "mlp",
            "experts",
            "gate",
            "router",
            "shared_experts",
            "layers",
            "weight",
            "up_proj",
            "e_score_correction_bias",
        ]
    )
    name = st.lists(part | number, min_size=1, max_size=7).map(
        lambda parts: "model.layers.0." + ".".join(parts)
    )
    stored = {}
    for layer, expert in ((layer, expert) for layer in range(2) for expert in range(2)):
        stored[f"model.layers.{layer}.mlp.experts.{expert}.w"] = ("U8", [1], b"x")
        stored[f"model.layers.{layer}.mlp.gate.weight"] = (
            "U8" if data.draw(st.booleans()) else "F16",
            [2, 1],
            b"abcd",
        )
    for odd in data.draw(st.lists(name.filter(lambda found: len(found) <= LONGEST_NAME), max_size=3)):
        shape = data.draw(st.sampled_from([[2], [1], [], [0], [2, 0], [1, 2], [3]]))
        stored[odd] = ("U8", shape, bytes(math.prod(shape)))
    stored = {
        name: (dtype, shape, data[: WHOLE_BYTES[dtype] * math.prod(shape)])
        for name, (dtype, shape, data) in stored.items()
    }
    write(root / SINGLE_SHARD, stored, {})
    (root / "config.json").write_text(
        json.dumps({"num_experts": 2, "num_experts_per_tok": 1, "num_hidden_layers": 2})
    )
    try:
        layout = lay_out(open_checkpoint(root))
        summary(layout)
        export(layout, Plan(2, dict.fromkeys(layout.shape.layers, (1,))), tmp_path / "out")
    except ExciseError:
        assert not (tmp_path / "out").exists()
    else:
        written = open_checkpoint(tmp_path / "out").tensors
        assert {name for name in written if name.endswith(".experts.0.w")} == {
            f"model.layers.{i}.mlp.experts.0.w" for i in layout.shape.layers
        }
    finally:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": True}, "num_hidden_layers is True, expected a whole number"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers is '2'"),
        ({"num_experts": 10**18}, r"gate\.weight has shape \[8, 2\], expected 1000000000000000000 experts"),
        ({"n_group": 10**12}, "8 experts in 1000000000000 groups"),
        ({"n_group": 3}, "8 experts in 3 groups"),
        ({"n_group": 4, "topk_group": 5}, "8 experts in 4 groups, of which a token may use 5, cannot be"),
        ({"text_config": [1]}, "text_config is \\[1\\], expected an object"),
        ({"architectures": {"a": 1}}, "no architecture named"),
        ({"architectures": "OlmoeForCausalLM"}, "no architecture named"),
        ({"model_type": "\ud800"}, "surrogates not allowed"),
    ],
)
def test_configurations_that_once_crashed_or_passed(
    change: dict[str, Any], message: str, folder: Path
) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **change}))
    with pytest.raises(ExciseError, match=message):
        export(lay_out(open_checkpoint(folder)), Plan(EXPERTS, UNEVEN), folder.parent / "out")
    assert not use(folder, UNEVEN)


def test_a_promise_of_countless_experts(tmp_path: Path) -> None:
    """A router of 10^18 empty rows keeps the promise; nothing of that length may be built."""
    tensors = {
        "model.layers.0.mlp.gate.weight": ("F32", [10**18, 0], b""),
        "model.layers.0.mlp.experts.0.w": ("U8", [1], b"x"),
    }
    write(tmp_path / SINGLE_SHARD, tensors, {})
    (tmp_path / "config.json").write_text(json.dumps({"num_experts": 10**18, "num_experts_per_tok": 1}))
    with pytest.raises(
        ExciseError, match=r"holds experts 0\.\.0 \(1 of them\), config\.json promises 1000000000000000000"
    ):
        lay_out(open_checkpoint(tmp_path))


@pytest.mark.parametrize("name", ["config.json", INDEX_FILE])
def test_huge_json_is_refused_before_it_is_read(name: str, folder: Path) -> None:
    """A sparse file of 10 GB: reading it would be noticed."""
    with (folder / name).open("r+b") as file:
        file.truncate(10**10)
    with pytest.raises(ExciseError, match=rf"{name}: 10000000000 bytes; such a file has at most \d+"):
        open_checkpoint(folder)


def test_json_up_to_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b"{}" + b" " * 98)
    assert strict_json.read_object(path, "", largest=100) == {}
    path.write_bytes(b"{}" + b" " * 99)
    with pytest.raises(ExciseError, match="101 bytes; such a file has at most 100"):
        strict_json.read_object(path, "", largest=100)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"a": 1, "b": 2, "a": 3}', "names a twice"),
        (b'{"a": {"b": 2, "b": 2}}', "names b twice"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b'{"\\ud800": 1}', "surrogates not allowed"),
        (b'{"a": ' + b"[" * 150 + b"]" * 150 + b"}", "nested deeper than 100 levels"),
        (b'{"a": ' + b"[" * 90_000, "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        (b"", "not valid JSON"),
    ],
)
def test_json_that_is_refused(raw: bytes, message: str, tmp_path: Path, folder: Path) -> None:
    """As configuration, as index, and as a plan."""
    for path, read in ((folder / "config.json", open_checkpoint), (folder / INDEX_FILE, open_checkpoint)):
        before = path.read_bytes()
        path.write_bytes(raw)
        with pytest.raises(ExciseError, match=rf"{path.name}: .*{message}"):
            read(folder)
        path.write_bytes(before)
    (tmp_path / "plan.json").write_bytes(raw)
    with pytest.raises(ExciseError, match=rf"plan\.json: .*{message}"):
        Plan.read(tmp_path / "plan.json")


def test_infinity_in_a_configuration_is_read(folder: Path) -> None:
    """Configurations of hybrid models hold it (time_step_limit: [0.0, Infinity])."""
    (folder / "config.json").write_text(json.dumps({**CONFIG, "time_step_limit": [0.0, float("inf")]}))
    assert use(folder, EVEN)


def test_many_names_and_one_twice_are_refused_quickly() -> None:
    """Looking for the repeated one must not cost the square of their number."""
    raw = "{" + ",".join(f'"{min(i, 49_998)}": 1' for i in range(50_000)) + "}"
    begun = time.perf_counter()
    with pytest.raises(ExciseError, match="names 49998 twice"):
        strict_json.parse_object(raw.encode(), "x")
    assert time.perf_counter() - begun < 5
