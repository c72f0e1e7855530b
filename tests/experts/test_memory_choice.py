"""Where weights go: decided from their sizes and what is free, and said."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import dispatch_model

from criteria.observe import observe
from experts import limits, memory_choice
from experts.anatomy import Anatomy, dissect
from experts.disk.shards import Checkpoint, open_checkpoint
from experts.errors import ExciseError
from experts.memory_choice import choose
from experts.memory_settings import MemorySettings, mode_of
from experts.ranks import Ranks
from experts.streaming.forecast import forecast_sizes
from tests.support import tiny
from tests.support.inputs import uniform_plan, windows
from validate.plan_losses import plan_losses

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("choice") / "model"
    return open_checkpoint(tiny.save(tiny.build("olmoe"), folder))


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Bytes that are free, by the device's type."""
    left = {"cpu": 10**12, "cuda": 0}
    monkeypatch.setattr(memory_choice, "free_bytes", lambda device: left[device.type])
    return left


def test_what_fits_stays(checkpoint: Checkpoint, free: dict[str, int]) -> None:
    """Four fifths of what is free are for weights; one byte less, and they are streamed."""
    sizes = forecast_sizes(checkpoint)
    free["cpu"] = int(sizes.whole / 0.8) + 1
    assert not choose(checkpoint, MemorySettings()).streamed
    free["cpu"] = int(sizes.whole / 0.8) - 1
    chosen = choose(checkpoint, MemorySettings())
    assert (chosen.streamed, chosen.device, chosen.weights) == (True, CPU, sizes.streamed)
    assert "the weights would take" in chosen.why
    assert "are free on cpu" in chosen.why


def test_the_user_decides(checkpoint: Checkpoint, free: dict[str, int]) -> None:
    assert choose(checkpoint, MemorySettings("streamed")).streamed
    free["cpu"] = 1000
    assert not choose(checkpoint, MemorySettings("resident")).streamed
    limited = MemorySettings(limit=forecast_sizes(checkpoint).whole - 1)
    free["cpu"] = 10**12
    chosen = choose(checkpoint, limited)
    assert chosen.streamed
    assert "memory.limit is" in chosen.why


def test_where_not_even_a_layer_fits_it_says_what_it_needs(
    checkpoint: Checkpoint, free: dict[str, int]
) -> None:
    free["cpu"] = 1000
    with pytest.raises(ExciseError, match=r"not even a layer at a time fits: .* outside the decoder layers"):
        choose(checkpoint, MemorySettings())


def test_a_limit_holds_for_what_stays_and_for_gpus(
    checkpoint: Checkpoint, free: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = forecast_sizes(checkpoint).whole
    with pytest.raises(ExciseError, match=r"the weights take .*, and memory.limit is .*; raise it to"):
        choose(checkpoint, MemorySettings("resident", limit=whole - 1))
    assert not choose(checkpoint, MemorySettings("resident", limit=whole)).streamed
    free["cuda"] = 10**12
    monkeypatch.setattr(memory_choice, "_places", lambda: [torch.device("cuda", 0), CPU])
    assert choose(checkpoint, MemorySettings(limit=whole - 1)).streamed


def test_a_limit_that_is_too_small_is_what_has_to_be_raised(
    checkpoint: Checkpoint, free: dict[str, int]
) -> None:
    with pytest.raises(ExciseError, match=r"and memory.limit is 1.00 kB; raise it to \d"):
        choose(checkpoint, MemorySettings(limit=1000))


def test_processes_of_a_machine_share_the_limit(
    checkpoint: Checkpoint, free: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = forecast_sizes(checkpoint).whole
    assert not choose(checkpoint, MemorySettings("resident", limit=whole)).streamed
    monkeypatch.setattr(limits, "_sharing", [2])
    with pytest.raises(ExciseError, match=r"memory.limit is .* \(its part for one of 2 processes\)"):
        choose(checkpoint, MemorySettings("resident", limit=whole))
    assert not choose(checkpoint, MemorySettings("resident", limit=2 * whole)).streamed


def test_a_rank_counts_what_was_free_before_any_of_them_loaded(
    checkpoint: Checkpoint, free: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the weights of the others would make it stream, and all would wait for it."""
    free["cpu"] = 1000
    monkeypatch.setattr(memory_choice, "joined", lambda: Ranks(1, 2, free=10**12))
    assert not choose(checkpoint, MemorySettings()).streamed


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ExciseError, match="memory 'disk': expected one of auto, resident, streamed"):
        mode_of("disk")


@pytest.mark.parametrize(("cards", "spread"), [(1, False), (2, False), (3, True)])
def test_layers_go_to_all_gpus_where_they_fit_there_alone(
    cards: int, spread: bool, checkpoint: Checkpoint, free: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the cards has room for 0.4 of the weights."""
    free["cuda"] = int(0.4 * forecast_sizes(checkpoint).whole / 0.8)
    free["cpu"] = 0
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(memory_choice, "_places", lambda: [torch.device("cuda", 0), CPU])
    try:
        chosen = choose(checkpoint, MemorySettings())
    except ExciseError:
        assert not spread
        return
    assert chosen.spread == spread
    assert not (spread and chosen.streamed)


def test_accelerates_hooks_change_nothing() -> None:
    """Layers that accelerate has placed are restricted, watched and entered like others."""
    model = tiny.build("olmoe")
    plain = numbers(dissect(model))
    layers = {f"model.layers.{layer}": CPU for layer in range(3)}
    places: dict[str, Any] = {"model.embed_tokens": CPU, **layers, "model.norm": CPU, "model.rotary_emb": CPU}
    hooked = dispatch_model(model, {**places, "lm_head": CPU}, main_device="cpu", force_hooks=True)
    assert hasattr(hooked.model.layers[1], "_hf_hook")
    for one, other in zip(plain, numbers(dissect(hooked)), strict=True):
        np.testing.assert_array_equal(one, other)


def numbers(anatomy: Anatomy) -> tuple[np.ndarray, np.ndarray]:
    text = windows(3, 12)
    plan = uniform_plan((0, 1, 2), (0, 2, 3, 5))
    return plan_losses(anatomy, text, [None, plan], batch=2), observe(anatomy, text, 2).moments


def test_a_gpu_takes_weights_file_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are placed by transformers, and never all in main memory."""
    from experts import loading

    seen: list[Any] = []

    def from_pretrained(*given: Any) -> Any:
        seen.append(given[3])
        raise ExciseError("far enough")

    monkeypatch.setattr(loading, "from_pretrained", from_pretrained)
    folder = tiny.save(tiny.build("olmoe"), tmp_path / "model")
    for device, spread in ((torch.device("cuda", 0), False), (None, True), (CPU, False)):
        with pytest.raises(ExciseError, match="far enough"):
            loading.load_network(folder, device=device, spread=spread)
    assert seen == [{"device_map": {"": torch.device("cuda", 0)}}, {"device_map": "auto"}, {}]
