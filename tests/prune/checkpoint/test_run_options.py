"""Options that fine-tunes leave in config.json: every forward gives logits, and what is written runs in plain
transformers.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from experts.ablation import restricted
from experts.anatomy import dissect
from experts.disk.layout import lay_out
from experts.disk.shards import open_checkpoint
from experts.loading import load_network
from experts.plan import Plan
from prune.checkpoint.write import export, export_notes
from tests.support import tiny
from tests.support.inputs import unequal_plan, uniform_plan

OPTIONS = {
    "output_router_logits": True,
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
}
PLANS = (uniform_plan, unequal_plan)


def with_options(source: Path, target: Path, **options: Any) -> Path:
    """The same checkpoint, by links, with other options in its config.json."""
    target.mkdir()
    for file in source.iterdir():
        if file.name != "config.json":
            (target / file.name).symlink_to(file)
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **options}))
    return target


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_forwards_do_not_depend_on_what_else_a_model_could_give(
    family: str, option: str, saved: dict[str, Path], tmp_path: Path
) -> None:
    """The logits are those of the model without the option, whole and restricted, bit by bit."""
    folder = with_options(saved[family], tmp_path / "model", **{option: OPTIONS[option]})
    plain, changed = dissect(load_network(saved[family])), dissect(load_network(folder))
    for plan in (None, *(make(plain.shape.layers) for make in PLANS)):
        expected, found = (logits_under(anatomy, plan) for anatomy in (plain, changed))
        assert torch.equal(expected, found)


def logits_under(anatomy: Any, plan: Plan | None) -> torch.Tensor:
    if plan is None:
        return tiny.logits(anatomy.model)
    with restricted(anatomy, plan):
        return tiny.logits(anatomy.model)


@pytest.mark.parametrize("make", PLANS)
@pytest.mark.parametrize("option", ["output_router_logits", "return_dict"])
@pytest.mark.parametrize("family", ["olmoe", "qwen3_moe", "mixtral", "gpt_oss"])
def test_what_is_written_runs_in_plain_transformers(
    family: str, option: str, make: Callable[[tuple[int, ...]], Plan], saved: dict[str, Path], tmp_path: Path
) -> None:
    """With the source's option where it can be kept (the router's loss of equal counts), else with a note
    that names it.
    """
    folder = with_options(saved[family], tmp_path / "model", **{option: OPTIONS[option]})
    layout = lay_out(open_checkpoint(folder))
    plan = make(layout.shape.layers)
    export(layout, plan, tmp_path / "out")
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    output = model(input_ids=tiny.ids(), labels=tiny.ids())
    assert output.logits.isfinite().all()
    kept = option == "output_router_logits" and plan.uniform
    assert getattr(model.config, option) == (OPTIONS[option] if kept else not OPTIONS[option])
    assert kept == (not any(option in note for note in export_notes(layout, plan)))
    if kept:
        assert output.aux_loss.isfinite()


def test_options_of_a_model_that_was_built_in_memory() -> None:
    """Also where the configuration of the whole and of its language model are two objects, and for
    `generate`.
    """
    model = tiny.build("olmoe", output_router_logits=True)
    model.generation_config.return_dict_in_generate = True
    model.generation_config.num_return_sequences = 3
    anatomy = dissect(model)
    with restricted(anatomy, unequal_plan(anatomy.shape.layers)):
        assert tiny.logits(model).isfinite().all()
        answer = model.generate(tiny.ids(1, 4), max_new_tokens=2, do_sample=False)
    assert isinstance(answer, torch.Tensor)
    assert answer.shape[0] == 1
