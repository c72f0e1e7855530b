"""Invariants 1 and 3 for every supported architecture: restricted = cut = exported and reloaded, and nothing
survives.
"""

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from experts.ablation import restricted
from experts.anatomy import dissect
from experts.disk.layout import lay_out
from experts.disk.shards import open_checkpoint
from experts.errors import ExciseError
from experts.loading import load_network
from experts.plan import Plan
from experts.surgery import cut
from prune.checkpoint.write import export
from tests.support import tiny
from tests.support.inputs import unequal_plan, uniform_plan

families = pytest.mark.parametrize("family", tiny.FAMILIES)


@families
def test_found_by_structure(family: str, saved: dict[str, Path]) -> None:
    """The model in memory and the files on disk tell the same story."""
    anatomy, layout = dissect(tiny.build(family)), lay_out(open_checkpoint(saved[family]))
    assert (
        layout.shape.layers
        == anatomy.shape.layers
        == ((1, 2) if "first_k_dense_replace" in tiny.FAMILIES[family] else (0, 1, 2))
    )
    assert (layout.shape.num_experts, layout.shape.top_k, layout.shape.groups) == (
        anatomy.shape.num_experts,
        anatomy.shape.top_k,
        anatomy.shape.groups,
    )
    assert anatomy.shape.num_experts == 8
    assert anatomy.shape.groups == (2 if family == "deepseek_v3" else 1)


@families
@pytest.mark.parametrize("plan_of", [uniform_plan, unequal_plan], ids=["uniform", "unequal"])
def test_restricted_is_cut_is_reloaded(family: str, plan_of, saved: dict[str, Path], tmp_path: Path) -> None:
    model = load_network(saved[family], "float32")
    anatomy = dissect(model)
    plan = plan_of(anatomy.shape.layers)
    before = tiny.logits(model)
    with restricted(anatomy, plan):
        inside = tiny.logits(model)
    assert torch.equal(tiny.logits(model), before), "a lifted restriction left a trace"
    assert (inside - before).abs().max() > 1e-3, "the restriction did nothing"

    export(lay_out(open_checkpoint(saved[family])), plan, tmp_path / "out")
    reloaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", trust_remote_code=not plan.uniform
    ).eval()
    assert torch.equal(tiny.logits(reloaded), inside)
    smaller = copy.deepcopy(model)
    cut(dissect(smaller), plan)
    assert torch.equal(tiny.logits(smaller), inside)


@families
@pytest.mark.parametrize("implementation", ["eager", "batched_mm"])
def test_other_experts_implementations(family: str, implementation: str) -> None:
    model = tiny.build(family)
    model.set_experts_implementation(implementation)
    anatomy = dissect(model)
    plan = uniform_plan(anatomy.shape.layers)
    with restricted(anatomy, plan):
        inside = tiny.logits(model)
    cut(anatomy, plan)
    assert torch.equal(tiny.logits(model), inside)


@families
def test_bfloat16(family: str) -> None:
    model = tiny.build(family).to(torch.bfloat16)
    anatomy = dissect(model)
    plan = uniform_plan(anatomy.shape.layers)
    with restricted(anatomy, plan):
        inside = tiny.logits(model)
    cut(anatomy, plan)
    assert torch.equal(tiny.logits(model), inside)


def test_only_kept_experts_are_used() -> None:
    """Independent of the seam: making a removed expert enormous does not change the restricted model."""
    model = tiny.build("olmoe")
    anatomy = dissect(model)
    plan = uniform_plan(anatomy.shape.layers)
    with restricted(anatomy, plan):
        before = tiny.logits(model)
        with torch.no_grad():
            for layer in anatomy.layers:
                layer.experts.down_proj[1] = 1e6
        assert torch.equal(tiny.logits(model), before)
    assert not torch.allclose(tiny.logits(model), before)


def test_exception_inside_leaves_no_trace() -> None:
    model = tiny.build("deepseek_v3")
    anatomy, before = dissect(model), tiny.logits(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="inside"), restricted(anatomy, uniform_plan(anatomy.shape.layers)):
        raise RuntimeError("inside")
    assert torch.equal(tiny.logits(model), before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all("forward" not in vars(layer.experts) for layer in anatomy.layers)


def test_restrictions_do_not_nest() -> None:
    """A restriction inside another is refused, and the outer one still holds and is lifted."""
    model = tiny.build("qwen3_moe")
    anatomy = dissect(model)
    first, second, before = (
        uniform_plan(anatomy.shape.layers),
        uniform_plan(anatomy.shape.layers, (0, 1, 4, 5)),
        tiny.logits(model),
    )
    with restricted(anatomy, first):
        alone = tiny.logits(model)
        with pytest.raises(ExciseError, match="already restricted"), restricted(anatomy, second):
            pass
        assert torch.equal(tiny.logits(model), alone)
    assert torch.equal(tiny.logits(model), before)


def test_dense_model_is_refused() -> None:
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 32,
    }
    with pytest.raises(ExciseError, match="llama: a dense model"):
        dissect(LlamaForCausalLM(LlamaConfig(**sizes)))


def test_model_outside_the_interface_is_refused() -> None:
    from transformers import Llama4ForCausalLM, Llama4TextConfig

    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "intermediate_size_mlp": 16,
        "num_hidden_layers": 2,
        "vocab_size": 32,
    }
    config = Llama4TextConfig(
        **sizes, num_attention_heads=2, num_key_value_heads=2, head_dim=8, num_local_experts=2
    )
    with pytest.raises(ExciseError, match="outside transformers' experts interface"):
        dissect(Llama4ForCausalLM(config))


def test_unknown_tensor_with_expert_axis_is_refused() -> None:
    model = tiny.build("olmoe")
    model.model.layers[1].mlp.gate.register_buffer("temperature", torch.ones(8))
    with pytest.raises(ExciseError, match=r"layers\.1\.mlp\.gate\.temperature has 8 rows"):
        dissect(model)


def test_plan_of_another_model_is_refused() -> None:
    anatomy = dissect(tiny.build("olmoe"))
    with pytest.raises(ExciseError, match="counts 16 experts per layer, the model has 8"):
        restricted(anatomy, Plan(16, dict.fromkeys((0, 1, 2), (0, 1, 2)))).__enter__()
    with pytest.raises(ExciseError, match=r"prunes layers \[0, 1\], the model's MoE layers are \[0, 1, 2\]"):
        cut(anatomy, uniform_plan((0, 1)))


@pytest.mark.parametrize(("free", "device"), [(10**12, "cuda"), (1000, "cpu")])
def test_gpu_only_if_the_model_fits(free: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from experts.memory import device_for

    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("experts.memory.free_bytes", lambda _: free)
    assert device_for(tiny.build("olmoe").get_memory_footprint()).type == device
