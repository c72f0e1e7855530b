"""Every architecture behind transformers' experts interface: supported bit by bit, or refused with its reason. Writes the table."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from criteria.observe import observe
from experts.ablation import restricted
from experts.anatomy import dissect, load
from experts.errors import ExciseError
from experts.plan import Plan
from experts.surgery import cut
from prune.checkpoint import export
from prune.layout import lay_out
from prune.shards import open_checkpoint
from tests import architectures, tiny
from tests.conftest import windows

TABLE = Path(__file__).resolve().parent.parent / "ARCHITECTURES.md"
EVEN, FEW = (0, 1, 3, 4, 5, 7), (1, 2, 4, 6)  # as many of either router group
REFUSED = {
    "deepseek_v4": "is a table of whole numbers, as routers use that choose experts by token id; it cannot be cut",
    "inkling_text": "found 0 routers with 8 rows",
    "zaya": "found 0 routers with 8 rows",
}
HEAD = """# Architectures

Every causal-LM type of transformers {version} that routes through its experts interface, built small with random weights by its own
configuration class: found by structure, calibrated, then restricted = cut = exported and reloaded, logits bit-equal, with equal counts and
with unequal ones (`scope: global`, which loads by the named class of the library, resized). `tests/test_breadth.py` makes this table and
fails when it is out of date. {supported} supported, {refused} refused, none failing. At the end {wrappers} multimodal wrappers, pruned in their
language part.

| type | class | MoE layers | router | equal counts | unequal counts |
| --- | --- | --- | --- | --- | --- |
"""
rows: dict[str, str] = {}


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    """After all types were tried, their rows are the documented ones."""
    yield
    if rows.keys() != set(ALL):
        return  # only some were run
    import transformers

    refused, wrappers = sum("refused" in row for row in rows.values()), len(architectures.MULTIMODAL)
    supported = len(rows) - refused - wrappers
    text = HEAD.format(version=transformers.__version__, supported=supported, refused=refused, wrappers=wrappers)
    text += "\n".join(rows[name] for name in ALL) + "\n"
    known = TABLE.read_text(encoding="utf-8") if TABLE.exists() else ""
    if known != text:
        TABLE.write_text(text, encoding="utf-8")
    assert known == text, f"{TABLE.name} was out of date and has been written anew; commit it"


ALL = (*architectures.types(), *architectures.MULTIMODAL)


@pytest.mark.parametrize("model_type", ALL)
def test_supported_or_refused(model_type: str, tmp_path: Path) -> None:
    model = (architectures.build_multimodal if model_type in architectures.MULTIMODAL else architectures.build)(model_type)
    if model_type in REFUSED:
        with pytest.raises(ExciseError) as refusal:
            dissect(model)
        assert REFUSED[model_type] in str(refusal.value)
        rows[model_type] = f"| `{model_type}` | {type(model).__name__} | | refused: {refusal.value} | | |"
        return
    anatomy = dissect(model)
    assert observe(anatomy, windows(2, 16), 2).count.sum() == 2 * 16 * anatomy.top_k * len(anatomy.layers)
    plan = Plan(anatomy.experts, dict.fromkeys(anatomy.indices, EVEN))
    uneven = Plan(anatomy.experts, {layer: (EVEN, FEW)[place % 2] for place, layer in enumerate(anatomy.indices)})
    model.save_pretrained(tmp_path / "source")
    layout = lay_out(open_checkpoint(tmp_path / "source"))
    assert (layout.layers, layout.experts, layout.top_k, layout.groups) == (anatomy.indices, anatomy.experts, anatomy.top_k, anatomy.groups)
    full = tiny.logits(model)
    for out, kept in ((tmp_path / "equal", plan), (tmp_path / "unequal", uneven)):
        with restricted(anatomy, kept):
            expected = tiny.logits(model)
        assert not torch.equal(expected, full), "nothing was removed"
        export(layout, kept, out)
        assert torch.equal(tiny.logits(load(out, trust_remote_code=not kept.uniform)), expected), "reloaded"
    with restricted(anatomy, plan):
        expected = tiny.logits(model)
    router = f"{type(anatomy.layers[0].router).__name__}, top-{anatomy.top_k}" + (
        f", {anatomy.groups} groups" if anatomy.groups > 1 else ""
    )
    cut(anatomy, plan)
    assert torch.equal(tiny.logits(model), expected), "cut"
    unequal = "one MoE layer" if uneven.uniform else "bit-equal"
    rows[model_type] = f"| `{model_type}` | {type(model).__name__} | {len(anatomy.layers)} | {router} | bit-equal | {unequal} |"


def test_the_goal() -> None:
    """40 types at least."""
    assert len(architectures.types()) - len(REFUSED) >= 40
