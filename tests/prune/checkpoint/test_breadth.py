"""Every architecture behind transformers' experts interface: supported bit by bit, or refused with its
reason; ARCHITECTURES.md says which.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from criteria.by_name import resolve
from criteria.observe import observe
from experts.ablation import restricted
from experts.anatomy import Anatomy, dissect
from experts.disk.layout import Layout, lay_out
from experts.disk.shards import open_checkpoint
from experts.effects.instrument import Instrument
from experts.effects.means import mean_outputs
from experts.errors import ExciseError
from experts.loading import load_network, skeleton
from experts.modes import Mode, Scope
from experts.plan import Plan
from experts.shape import Shape
from experts.surgery import cut
from prune.checkpoint.rehearsal import check_export, check_reload
from prune.checkpoint.write import export
from prune.recover.targets import check_stored
from tests.support import architectures, tiny
from tests.support.architecture_table import (
    ALL,
    COMMAND,
    REFUSED,
    TABLE,
    TYPES,
    build,
    document,
    documented,
    refused_row,
    same_bits,
    supported_row,
)
from tests.support.inputs import windows
from tests.support.masking import masked
from tests.support.one_by_one import one_by_one

EVEN, FEW = (0, 1, 3, 4, 5, 7), (1, 2, 4, 6)  # as many of either router group
STALE = f"ARCHITECTURES.md is out of date; {COMMAND}"


def test_the_goal() -> None:
    """40 types at least, and no wrapper forgotten."""
    assert sum(name not in REFUSED for name in TYPES) >= 40
    assert set(architectures.marked()) <= set(ALL)


def test_the_table_is_of_these_types() -> None:
    """Its head, its counts, its order; what a row says is compared where its type is tried."""
    rows = documented()
    assert rows.keys() == set(ALL), STALE
    assert TABLE.read_text(encoding="utf-8") == document(rows), STALE


@pytest.mark.parametrize("model_type", REFUSED)
def test_refused(model_type: str) -> None:
    model = build(model_type)
    with pytest.raises(ExciseError) as refusal:
        dissect(model)
    assert REFUSED[model_type] in str(refusal.value)
    assert documented()[model_type] == refused_row(model_type, model, refusal.value), STALE


def test_a_layer_that_changes_between_visits_is_noticed() -> None:
    """The column "layer by layer" would say so: one weight of the last layer moves when it is visited."""
    anatomy = dissect(build("olmoe"))
    last = anatomy.model.model.layers[-1].post_attention_layernorm.weight

    def nudge(span: range) -> None:
        if span.stop == len(anatomy.layers):
            last.data[0] *= 1 + 2**-20

    assert same_bits(anatomy, one_by_one(anatomy))
    assert not same_bits(anatomy, one_by_one(anatomy, visit=nudge))


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [name for name in ALL if name not in REFUSED])
def test_restricted_cut_and_reloaded_are_bit_equal(model_type: str, tmp_path: Path) -> None:
    model = build(model_type)
    anatomy = dissect(model)
    assert len(anatomy.layers) > 1
    calibrates(anatomy)
    plans = uniform, unequal = two_plans(anatomy.shape)
    layout = saved_layout(model, anatomy, tmp_path / "source")
    # What is asked before any work lets them through.
    check_export(layout, plans, tmp_path / "equal")
    check_reload(layout, plans, trust_remote_code=False)
    full = tiny.logits(model)
    exports(anatomy, layout, uniform, full, tmp_path / "equal")
    exports(anatomy, layout, unequal, full, tmp_path / "unequal")
    check_recovery(tmp_path / "source", layout)
    assert documented()[model_type] == supported_row(model_type, model, anatomy), STALE
    with restricted(anatomy, uniform):
        expected = tiny.logits(model)
    cut(anatomy, uniform)
    assert torch.equal(tiny.logits(model), expected), "cut"


def two_plans(shape: Shape) -> tuple[Plan, Plan]:
    """Equal counts, and other counts in neighbouring layers."""
    uneven = {layer: (EVEN, FEW)[row % 2] for row, layer in enumerate(shape.layers)}
    return Plan(shape.num_experts, dict.fromkeys(shape.layers, EVEN)), Plan(shape.num_experts, uneven)


def calibrates(anatomy: Anatomy) -> None:
    """Every token reaches its experts in every layer."""
    counts = observe(anatomy, windows(2, 16), 2).count
    assert counts.sum() == 2 * 16 * anatomy.shape.top_k * len(anatomy.layers)


def saved_layout(model: PreTrainedModel, anatomy: Anatomy, folder: Path) -> Layout:
    """The folder has the shape of the model, and that has the groups of its configuration."""
    model.save_pretrained(folder)
    layout = lay_out(open_checkpoint(folder))
    shape, own = layout.shape, anatomy.shape
    assert (shape.layers, shape.num_experts, shape.top_k, shape.groups) == (
        own.layers,
        own.num_experts,
        own.top_k,
        own.groups,
    )
    config = model.config.get_text_config()
    groups = [number for key in ("n_group", "num_expert_group") if (number := getattr(config, key, None))]
    assert own.groups == (groups[0] if groups else 1)
    return layout


def exports(anatomy: Anatomy, layout: Layout, plan: Plan, full: torch.Tensor, out: Path) -> None:
    """Restricted = masked to rounding = exported and reloaded bit by bit; towers are copied."""
    model = anatomy.model
    with restricted(anatomy, plan):
        expected = tiny.logits(model)
    assert not torch.equal(expected, full), "nothing was removed"
    with torch.no_grad(), masked(model, plan.kept, anatomy.shape.num_experts):
        assert (tiny.logits(model) - expected).abs().max() < 5e-5, "the reference"
    export(layout, plan, out)
    assert towers(out) == towers(layout.checkpoint.folder)
    assert torch.equal(tiny.logits(load_network(out, trust_remote_code=not plan.uniform)), expected), (
        "reloaded"
    )


def check_recovery(source: Path, layout: Layout) -> None:
    """Trained routers, experts and attention could be written back: of the loaded model, and of the one
    without weights that is asked first.
    """
    for model in (load_network(source), skeleton(source)):
        attention = ("attention",) * any(
            name.endswith(("q_proj", "qkv_proj", "q_b_proj")) for name, _ in model.named_modules()
        )
        check_stored(dissect(model), layout, ("router", "experts", *attention))


def towers(folder: Path) -> dict[str, bytes]:
    """What belongs to images and sound, as bytes."""
    weights = load_file(folder / "model.safetensors")
    return {
        name: weights[name].numpy().tobytes()
        for name in weights
        if any(part in name for part in ("vision", "visual", "audio"))
    }


@pytest.mark.parametrize("model_type", ["nemotron_h", "muse_spark"])
def test_experts_in_a_space_of_their_own(model_type: str) -> None:
    """Narrower than the hidden states: only the turn of the residual stream has no meaning, and the criterion
    that needs it says so.
    """
    anatomy = dissect(build(model_type))
    text = windows(2, 16)
    means = mean_outputs(anatomy, torch.from_numpy(text.tokens))
    assert means.shape == (len(anatomy.layers), anatomy.shape.num_experts, 16)
    instrument = Instrument(anatomy, Mode.MEAN, means)
    assert instrument.check(torch.from_numpy(text.tokens), Scope.POSITION) < 1e-4
    statistics = observe(anatomy, text, 2)
    assert (np.isfinite(resolve("reap_sum").score(statistics)) | statistics.unreached).all()
    with pytest.raises(ExciseError, match="a space of their own size"):
        resolve("easy_ep").score(statistics)
