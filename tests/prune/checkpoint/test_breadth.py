"""Every architecture behind transformers' experts interface: supported bit by bit, or refused with its reason. Writes the table."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from criteria.observe import observe
from criteria.registry import resolve
from experts.ablation import restricted
from experts.anatomy import dissect
from experts.disk.layout import Layout, lay_out
from experts.disk.shards import open_checkpoint
from experts.effects.instrument import Instrument
from experts.effects.means import mean_outputs
from experts.errors import ExciseError
from experts.loading import load_network, skeleton
from experts.modes import Mode, Scope
from experts.plan import Plan
from experts.surgery import cut
from prune.checkpoint.rehearsal import check_export, check_reload
from prune.checkpoint.write import export
from prune.recover.recovery import check_stored
from tests.support import architectures, tiny, wrappers
from tests.support.inputs import windows
from tests.support.masking import masked

TABLE = Path(__file__).resolve().parents[3] / "ARCHITECTURES.md"
EVEN, FEW = (0, 1, 3, 4, 5, 7), (1, 2, 4, 6)  # as many of either router group
REFUSED = {
    "diffusion_gemma": "two MoE blocks in one decoder layer",
    "ernie4_5_vl_moe": "two MoE blocks in one decoder layer",
    "inkling_mm_model": "has 9 rows for 8 experts, some for shared or skipped ones",
    "deepseek_v4": "is a table of whole numbers, as routers use that choose experts by token id; it cannot be cut",
    "inkling_text": "has 9 rows for 8 experts, some for shared or skipped ones",
    "zaya": "has 9 rows for 8 experts, some for shared or skipped ones",
}
HEAD = """# Architectures

Every causal-LM type of transformers {version} that routes through its experts interface, built small with random weights by its own
configuration class: found by structure, calibrated, then restricted = cut = exported and reloaded, logits bit-equal, with equal counts and
with unequal ones (`scope: global`, which loads by the named class of the library, resized); and as close as rounding to routing with masked
logits, which needs no code of Excise. Routers that know groups have two. `tests/prune/checkpoint/test_breadth.py` makes this table and fails when it is out
of date. Effects at positions (`excise effects`, `excise audit`) are packed into one forward where that equals plain
replay, else every intervention is a whole forward. {supported} supported, {refused} refused, none failing.

{head}
"""
MULTIMODAL = """
## Multimodal wrappers

Types with a `text_config`, pruned in their language part; towers for images and sound are copied byte for byte, also where they have experts
of their own. All that have experts behind the interface themselves, and some that wrap a type of the first table. {supported} supported,
{refused} refused.

{head}
"""
COLUMNS = """| type | class | MoE layers | router | equal counts | unequal counts | effects at positions |
| --- | --- | --- | --- | --- | --- | --- |"""
rows: dict[str, str] = {}


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    """After all types were tried, their rows are the documented ones."""
    yield
    if rows.keys() != set(ALL):
        return  # only some were run
    import transformers

    text = ""
    for head, names in ((HEAD, TYPES), (MULTIMODAL, tuple(wrappers.OWN))):
        refused = sum(name in REFUSED for name in names)
        text += head.format(
            version=transformers.__version__, supported=len(names) - refused, refused=refused, head=COLUMNS
        )
        text += "\n".join(rows[name] for name in names) + "\n"
    known = TABLE.read_text(encoding="utf-8") if TABLE.exists() else ""
    if known != text:
        TABLE.write_text(text, encoding="utf-8")
    assert known == text, f"{TABLE.name} was out of date and has been written anew; commit it"


TYPES = tuple(architectures.types())
ALL = (*TYPES, *wrappers.OWN)


@pytest.mark.parametrize("model_type", ALL)
def test_supported_or_refused(model_type: str, tmp_path: Path) -> None:
    model = (wrappers if model_type in wrappers.OWN else architectures).build(model_type)
    if model_type in REFUSED:
        with pytest.raises(ExciseError) as refusal:
            dissect(model)
        assert REFUSED[model_type] in str(refusal.value)
        rows[model_type] = f"| `{model_type}` | {type(model).__name__} | | refused: {refusal.value} | | | |"
        return
    anatomy = dissect(model)
    assert len(anatomy.layers) > 1
    assert observe(anatomy, windows(2, 16), 2).count.sum() == 2 * 16 * anatomy.shape.top_k * len(
        anatomy.layers
    )
    plan = Plan(anatomy.shape.num_experts, dict.fromkeys(anatomy.shape.layers, EVEN))
    uneven = Plan(
        anatomy.shape.num_experts,
        {layer: (EVEN, FEW)[place % 2] for place, layer in enumerate(anatomy.shape.layers)},
    )
    model.save_pretrained(tmp_path / "source")
    layout = lay_out(open_checkpoint(tmp_path / "source"))
    assert (layout.shape.layers, layout.shape.num_experts, layout.shape.top_k, layout.shape.groups) == (
        anatomy.shape.layers,
        anatomy.shape.num_experts,
        anatomy.shape.top_k,
        anatomy.shape.groups,
    )
    config = model.config.get_text_config()
    assert anatomy.shape.groups == next(
        (number for key in ("n_group", "num_expert_group") if (number := getattr(config, key, None))), 1
    )
    check_export(
        layout, (plan, uneven), tmp_path / "equal"
    )  # what is asked before any work lets them through
    check_reload(layout, (plan, uneven), trust_remote_code=False)
    full = tiny.logits(model)
    for out, kept in ((tmp_path / "equal", plan), (tmp_path / "unequal", uneven)):
        with restricted(anatomy, kept):
            expected = tiny.logits(model)
        assert not torch.equal(expected, full), "nothing was removed"
        with torch.no_grad(), masked(model, kept.kept, anatomy.shape.num_experts):
            assert (tiny.logits(model) - expected).abs().max() < 5e-5, "the reference"
        export(layout, kept, out)
        assert towers(out) == towers(tmp_path / "source")
        assert torch.equal(tiny.logits(load_network(out, trust_remote_code=not kept.uniform)), expected), (
            "reloaded"
        )
    with restricted(anatomy, plan):
        expected = tiny.logits(model)
    router = f"{type(anatomy.layers[0].router).__name__}, top-{anatomy.shape.top_k}" + (
        f", {anatomy.shape.groups} groups" if anatomy.shape.groups > 1 else ""
    )
    check_recovery(tmp_path / "source", layout)
    instrument = Instrument(anatomy)
    instrument.check(torch.from_numpy(windows(1, 16).tokens), Scope.POSITION)
    effects = "packed" if instrument.packs else "whole forwards"
    cut(anatomy, plan)
    assert torch.equal(tiny.logits(model), expected), "cut"
    rows[model_type] = (
        f"| `{model_type}` | {type(model).__name__} | {len(anatomy.layers)} | {router} | bit-equal | bit-equal | {effects} |"
    )


def check_recovery(source: Path, layout: Layout) -> None:
    """Trained routers, experts and attention could be written back: of the loaded model, and of the one without weights that is asked first."""
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
    """Narrower than the hidden states: only the turn of the residual stream has no meaning, and the criterion that needs it says so."""
    anatomy = dissect((wrappers if model_type in wrappers.OWN else architectures).build(model_type))
    text = windows(2, 16)
    means = mean_outputs(anatomy, torch.from_numpy(text.tokens))
    assert means.shape == (len(anatomy.layers), anatomy.shape.num_experts, 16)
    instrument = Instrument(anatomy, Mode.MEAN, means)
    assert instrument.check(torch.from_numpy(text.tokens), Scope.POSITION) < 1e-4
    statistics = observe(anatomy, text, 2)
    assert (np.isfinite(resolve("reap_sum").score(statistics)) | statistics.unreached).all()
    with pytest.raises(ExciseError, match="a space of their own size"):
        resolve("easy_ep").score(statistics)


def test_the_goal() -> None:
    """40 types at least, and no wrapper forgotten."""
    assert sum(name not in REFUSED for name in TYPES) >= 40
    assert set(architectures.marked()) <= set(ALL)
