"""The criterion on tiny models: against eliminations written out, layer by layer, and what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from criteria.budget import Budget
from criteria.elimination import search
from criteria.experiment_context import ExperimentContext
from criteria.refit_residual import growing, refit_residual
from experts.anatomy import Anatomy, dissect
from experts.disk.layout import lay_out
from experts.disk.shards import open_checkpoint
from experts.errors import ExciseError
from experts.memory_settings import MemorySettings
from experts.model import Model
from experts.stored_arrays import StoredArrays
from tests.support import tiny
from tests.support.sweeps import windows

TEXT = windows(4, 24)
E, K, INNER = 8, 3, 24


def context(anatomy: Anatomy, text: Any = TEXT, partial: StoredArrays | None = None) -> ExperimentContext:
    shape = anatomy.shape
    nothing: Any = np.zeros((shape.num_layers, shape.num_experts), dtype=bool)
    budget = Budget(shape.total, "layer", shape.smallest, "")
    statistics: Any = None
    return ExperimentContext(anatomy, text, 2, statistics, shape, budget, nothing, partial or StoredArrays())


def scores(anatomy: Anatomy, tokens: int = 0, rerouted: int = 0, **options: Any) -> np.ndarray:
    return refit_residual(context(anatomy, **options), tokens, rerouted, 0)["score"]


def features(block: Any, hidden: Tensor, left: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Z of a restricted OLMoE block [T, n·I], and its output [T, H], token by token."""
    gates, chosen = functional.linear(hidden, block.gate.weight[left]).softmax(-1).topk(K)
    dense, output = np.zeros((len(hidden), len(left), INNER)), np.zeros(hidden.shape)
    for token in range(len(hidden)):
        for gate, place in zip(gates[token].tolist(), chosen[token].tolist(), strict=True):
            first, second = functional.linear(hidden[token], block.experts.gate_up_proj[left[place]]).chunk(2)
            dense[token, place] = gate * (functional.silu(first) * second).numpy()
            output[token] += block.experts.down_proj[left[place]].numpy() @ dense[token, place]
    return dense.reshape(len(hidden), -1), output


def objective(dense: np.ndarray, lacking: np.ndarray, shift: float) -> float:
    rows = np.concatenate([dense, np.sqrt(shift) * np.eye(dense.shape[1])])
    wanted = np.concatenate([lacking, np.zeros((dense.shape[1], lacking.shape[1]))])
    return float(np.square(wanted - rows @ np.linalg.lstsq(rows, wanted, rcond=None)[0]).sum())


def by_hand(anatomy: Anatomy, rerouted: bool) -> tuple[list[int], dict[int, float]]:
    """The order of removal of the lowest layer, and J after it, over the square of the stream."""
    block: Any = anatomy.layers[0].block
    seen: dict[str, Tensor] = {}
    hooks = [
        block.register_forward_pre_hook(lambda _, given: seen.update(block=given[0])),
        anatomy.model.base_model.layers[0].register_forward_hook(lambda *call: seen.update(stream=call[2])),
    ]
    with torch.no_grad():
        anatomy.model(input_ids=TEXT.tensor("cpu"), use_cache=False)
        for hook in hooks:
            hook.remove()
        hidden = seen["block"].flatten(0, 1)
        square = float(seen["stream"].double().square().sum())
        whole, output = features(block, hidden, list(range(E)))
        left, order, found = list(range(E)), list[int](), dict[int, float]()
        while len(left) > K:
            values = {}
            for expert in left:
                others = [one for one in left if one != expert]
                dense = whole.reshape(-1, E, INNER)[:, others].reshape(len(whole), -1)
                down = block.experts.down_proj[others].double().numpy()
                given = np.einsum("tni,nhi->th", dense.reshape(len(dense), -1, INNER), down)
                shift = 0.1 * np.square(whole).sum(0).mean()
                if rerouted:
                    dense, given = features(block, hidden, others)
                    shift = 0.1 * np.square(dense).sum(0).mean()
                values[expert] = objective(dense, output - given, shift)
            gone = min(values, key=lambda expert: values[expert])
            order.append(gone)
            found[gone] = values[gone] / square
            left.remove(gone)
    return order, found


@pytest.mark.parametrize("rerouted", [0, E])
def test_the_lowest_layer_is_a_plain_elimination(rerouted: int) -> None:
    """With all candidates routed again it is the greedy search itself; without, that of a fixed routing."""
    anatomy = dissect(tiny.build("olmoe", num_hidden_layers=1))
    order, found = by_hand(anatomy, bool(rerouted))
    score = scores(anatomy, rerouted=rerouted)[0]
    assert list(np.argsort(score))[: len(order)] == order
    grown = np.maximum.accumulate([found[expert] for expert in order])
    np.testing.assert_allclose(score[order], grown, rtol=1e-4)


def test_more_unknowns_than_tokens_is_the_same_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """96 tokens for 192 unknowns are solved by tokens; the same numbers by unknowns."""
    anatomy = dissect(tiny.build("olmoe"))
    by_tokens = scores(anatomy)
    monkeypatch.setattr(search, "Dual", search.Primal)
    np.testing.assert_allclose(scores(anatomy), by_tokens, rtol=1e-7)


@pytest.mark.parametrize("rerouted", [0, 2])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family(family: str, rerouted: int) -> None:
    """Groups stay even on the way down, and nothing is left behind."""
    anatomy = dissect(tiny.build(family))
    before = {name: tensor.clone() for name, tensor in anatomy.model.state_dict().items()}
    found = scores(anatomy, rerouted=rerouted)
    assert np.isfinite(found).all()
    assert (found > 0).all()
    groups, half = anatomy.shape.groups, anatomy.shape.num_experts // 2
    for row in found:
        counts = anatomy.shape.group_counts(np.argsort(row)[half:].tolist())
        assert set(counts) == {half // groups}
    after = anatomy.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_streamed_is_resident_and_batches_do_not_matter(tmp_path: Path) -> None:
    folder = tiny.save(tiny.build("qwen2_moe"), tmp_path / "model")
    resident, streamed = (
        Model(lay_out(open_checkpoint(folder)), memory=MemorySettings(mode)).anatomy
        for mode in ("resident", "streamed")
    )
    expected = scores(resident, rerouted=1)
    assert np.array_equal(scores(streamed, rerouted=1), expected)
    single = ExperimentContext(**{**vars(context(resident)), "batch": 1})
    np.testing.assert_allclose(refit_residual(single, 0, 1, 0)["score"], expected, rtol=1e-4)


def test_fewer_tokens_are_spread_evenly() -> None:
    """All of them where the text has no more."""
    anatomy = dissect(tiny.build("olmoe"))
    assert not np.array_equal(scores(anatomy, tokens=48), scores(anatomy))
    assert np.array_equal(scores(anatomy, tokens=10_000), scores(anatomy))


def test_an_interrupted_search_goes_on(tmp_path: Path) -> None:
    anatomy = dissect(tiny.build("olmoe"))
    expected = scores(anatomy)
    half = expected.copy()
    half[0] = 7.0
    half[1:] = np.nan
    partial = StoredArrays(tmp_path / "partial.safetensors", "key")
    partial.write({"score": half})
    found = scores(anatomy, partial=partial)
    assert (found[0] == 7.0).all()
    assert np.array_equal(found[1:], expected[1:])


def test_scores_grow_along_the_removal() -> None:
    """Also where less is left after a removal than before it; those that stay are compared at the end."""
    found = growing({2: 4.0, 0: 3.0, 3: 9.0, 1: 8.0}, last=2, square=2.0)
    assert found[[2, 3, 1]].tolist() == [2.0, 4.5, 4.0]
    assert 2.0 < found[0] < 2.0 + 1e-12


def test_experts_that_cannot_be_seen_are_refused() -> None:
    network = tiny.build("olmoe")
    network.set_experts_implementation("eager")
    with pytest.raises(ExciseError, match=r"refit_residual: model.layers.0.mlp: its experts are computed by"):
        scores(dissect(network))
