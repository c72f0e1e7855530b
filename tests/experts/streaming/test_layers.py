"""Decoder layers from disk are those of a whole load, bit by bit, and leave no trace."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from experts.disk.shards import open_checkpoint
from experts.loading import load_network
from experts.streaming.forecast import forecast_sizes
from experts.streaming.layers import Streamed
from experts.weights import LayerWeights, Resident
from tests.support import architectures, tiny, wrappers
from tests.support.quantised import spread_out, to_fp8, to_mxfp4
from tests.support.streaming import differences, on_meta, opened, tensors_of

LARGE = {"hidden_size": 256, "moe_intermediate_size": 128, "intermediate_size": 256}


@pytest.fixture
def olmoe(saved: dict[str, Path]) -> tuple[PreTrainedModel, Streamed]:
    return opened(saved["olmoe"])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_families(family: str, saved: dict[str, Path]) -> None:
    assert not differences(saved[family])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["deepseek_v3", "gpt_oss"])
def test_other_precision(family: str, dtype: str, saved: dict[str, Path]) -> None:
    """Types keep some weights in float32 whatever they are asked for."""
    assert not differences(saved[family], dtype=dtype)


@pytest.mark.parametrize("model_type", ["jamba", "granitemoe", "gemma4_text", "nemotron_h"])
def test_other_types(model_type: str, tmp_path: Path) -> None:
    assert not differences(tiny.save(architectures.build(model_type), tmp_path / "model"))


@pytest.mark.parametrize("model_type", ["llava", "qwen3_vl_moe", "kimi_k25"])
def test_wrappers(model_type: str, tmp_path: Path) -> None:
    assert not differences(tiny.save(wrappers.build(model_type), tmp_path / "model"))


def test_half_precision_in_shards(tmp_path: Path) -> None:
    model = tiny.build("olmoe").bfloat16()
    folder = tiny.save(model, tmp_path / "model", max_shard_size="30kB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    assert not differences(folder)


def test_tied_embeddings(tmp_path: Path) -> None:
    folder = tiny.save(tiny.build("qwen3_moe", tie_word_embeddings=True), tmp_path / "model")
    assert not differences(folder)
    network, _ = opened(folder)
    assert network.get_output_embeddings().weight is network.get_input_embeddings().weight


@pytest.mark.parametrize("rows", [192, 256])
def test_fp8(rows: int, tmp_path: Path) -> None:
    """Rows of kv_a_proj_with_mqa: 2 rows of scales, of which the last one is cut off or not."""
    model = tiny.build("deepseek_v3", **LARGE, kv_lora_rank=rows - 8)
    folder = tiny.save(model, tmp_path / "model")
    meant = to_fp8(folder)
    assert not differences(folder)
    network, weights = opened(folder)
    with weights.loaded(range(1, 2)):
        here = tensors_of(network)
        name = "model.layers.1.self_attn.kv_a_proj_with_mqa.weight"
        assert here[name].shape[0] == rows
        assert torch.equal(here[name], meant[name].bfloat16())
        gate = meant["model.layers.1.mlp.experts.5.gate_proj.weight"].bfloat16()
        assert torch.equal(here["model.layers.1.mlp.experts.gate_up_proj"][5, : len(gate)], gate)


def test_mxfp4(tmp_path: Path) -> None:
    folder = tiny.save(tiny.build("gpt_oss", hidden_size=64, intermediate_size=64), tmp_path / "model")
    to_mxfp4(folder)
    assert not differences(folder)
    _, weights = opened(folder)
    assert load_network(folder).model.layers[0].mlp.experts.down_proj.dtype == torch.bfloat16
    assert weights.sizes == forecast_sizes(open_checkpoint(folder))


def test_read_ahead(saved: dict[str, Path]) -> None:
    assert not differences(saved["qwen3_moe"], ahead=True)


def test_read_ahead_is_dropped_when_another_layer_is_wanted(saved: dict[str, Path]) -> None:
    network, weights = opened(saved["olmoe"], ahead=True)
    without = on_meta(network)
    with weights.loaded(range(1)):
        pass
    with weights.loaded(range(2, 3)):
        assert {name.split(".")[2] for name in without - on_meta(network)} == {"2"}
    assert on_meta(network) == without


def test_read_ahead_is_dropped_after_an_error(saved: dict[str, Path]) -> None:
    network, weights = opened(saved["olmoe"], ahead=True)
    without = on_meta(network)
    with pytest.raises(KeyError), weights.loaded(range(1)):
        raise KeyError
    assert weights._ahead is not None
    assert weights._ahead._pending is None
    assert on_meta(network) == without


def test_layers_are_what_they_were(olmoe: tuple[PreTrainedModel, Streamed]) -> None:
    """Not other tensors of their kind: the very same."""
    network, weights = olmoe
    before = {name: id(tensor) for name, tensor in tensors_of(network).items()}
    for span in (range(1), range(1, 3)):
        with weights.loaded(span):
            assert {name: id(tensor) for name, tensor in tensors_of(network).items()} != before
        assert {name: id(tensor) for name, tensor in tensors_of(network).items()} == before
    with pytest.raises(ZeroDivisionError), weights.loaded(range(3)):
        raise ZeroDivisionError
    assert {name: id(tensor) for name, tensor in tensors_of(network).items()} == before


def test_several_layers_at_once(saved: dict[str, Path]) -> None:
    """With all layers it computes what the whole load does, bit by bit."""
    network, weights = opened(saved["deepseek_v3"])
    with weights.loaded(range(3)):
        assert not on_meta(network)
        assert torch.equal(tiny.logits(network), tiny.logits(load_network(saved["deepseek_v3"])))


def test_ready_to_compute(olmoe: tuple[PreTrainedModel, Streamed]) -> None:
    """Aligned as torch aligns, without gradients, in evaluation mode."""
    network, weights = olmoe
    with weights.loaded(range(3)):
        assert not [name for name, tensor in tensors_of(network).items() if tensor.data_ptr() % 64]
        assert not [name for name, tensor in network.named_parameters() if tensor.requires_grad]
    assert not network.training


def test_bytes_read(saved: dict[str, Path], olmoe: tuple[PreTrainedModel, Streamed]) -> None:
    """Every tensor once a sweep; those outside the layers never again."""
    checkpoint = open_checkpoint(saved["olmoe"])
    _, weights = olmoe
    outside = weights.bytes_read
    assert outside == sum(t.size for name, t in checkpoint.tensors.items() if ".layers." not in name)
    for _ in range(2):
        for span in weights.spans():
            with weights.loaded(span):
                pass
    assert weights.bytes_read == outside + 2 * (checkpoint.size - outside)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_sizes(family: str, saved: dict[str, Path]) -> None:
    """By parts; known from the configuration alone."""
    _, weights = opened(saved[family])
    whole = load_network(saved[family])
    tensors = (*whole.parameters(), *whole.buffers())
    assert weights.sizes.whole == sum(tensor.nbytes for tensor in tensors)
    layers = whole.model.layers
    assert weights.sizes.layer_bytes == tuple(
        sum(tensor.nbytes for tensor in (*layer.parameters(), *layer.buffers())) for layer in layers
    )
    assert forecast_sizes(open_checkpoint(saved[family])) == weights.sizes


def test_forecast_in_another_precision(saved: dict[str, Path]) -> None:
    half = forecast_sizes(open_checkpoint(saved["olmoe"]), "bfloat16")
    _, weights = opened(saved["olmoe"], dtype="bfloat16")
    assert half == weights.sizes


def test_interfaces(olmoe: tuple[PreTrainedModel, Streamed]) -> None:
    streamed: LayerWeights = olmoe[1]
    resident: LayerWeights = Resident(3)
    assert streamed.streamed
    assert not resident.streamed
    assert streamed.spans() == [range(1), range(1, 2), range(2, 3)]
    assert resident.spans() == [range(3)]
    with resident.loaded(range(3)):
        pass


def test_scales_spread_out() -> None:
    """The yardstick itself: 3 × 5 numbers in blocks of 2."""
    scales = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    expected = [[1, 1, 2, 2, 3], [1, 1, 2, 2, 3], [4, 4, 5, 5, 6]]
    assert spread_out(scales, (3, 5), block=2).tolist() == expected
