"""Products of slopes of sampled labels, against slopes that are worked out expert by expert."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import experts
from criteria.fisher_pairs import slope_products
from criteria.sampled_labels import label_losses, uniforms
from experts.anatomy import Anatomy, dissect
from experts.seam import Forward, intercepted
from tests.criteria.test_causal import scores_of, setting
from tests.support import tiny
from tests.support.inputs import windows


def slopes_expert_by_expert(anatomy: Anatomy, tokens: Tensor) -> np.ndarray:
    """s [T, L·E] = g_e ⟨f_e(x_t), ∂L/∂y_t⟩: every expert alone, and the slope in the output."""
    weighted: list[Tensor] = []  # g_e f_e of every layer [T, E, H]
    outputs: list[Tensor] = []

    def watch(_: int, run: Forward, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        routed = run(hidden, index, weight)
        with torch.no_grad():
            alone = torch.zeros(len(hidden), 8, routed.shape[1], dtype=torch.float64)
            for slot in range(index.shape[1]):
                one = run(hidden, index[:, slot : slot + 1], weight[:, slot : slot + 1])
                alone[torch.arange(len(hidden)), index[:, slot]] = one
        weighted.append(alone)
        routed.retain_grad()
        outputs.append(routed)
        return routed

    with intercepted(anatomy, watch):
        logits = anatomy.model(input_ids=tokens, use_cache=False).logits
    # Labels: the first token whose share of the distribution reaches the uniform number.
    numbers = uniforms(tokens, 1)[:, 0]
    reached = torch.softmax(logits.detach(), -1).cumsum(-1)
    labels = (reached <= numbers[..., None]).sum(-1)
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").backward()
    slopes = [torch.einsum("teh,th->te", f, y.grad) for f, y in zip(weighted, outputs, strict=True)]
    return torch.cat(slopes, dim=1).numpy()


@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3", "gpt_oss"])
def test_products_of_slopes(family: str) -> None:
    anatomy, text = dissect(tiny.build64(family)), windows(3, 12)
    slopes = slopes_expert_by_expert(anatomy, torch.from_numpy(text.tokens))
    found = slope_products(setting(anatomy, text), draws=1, windows=0)["pairs"]
    expected = slopes.T @ slopes / text.tokens.size
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())
    assert np.abs(found[:8, 8:]).max() > 0, "pairs across layers count"


def test_neither_batches_nor_streaming_matter(tmp_path: Path) -> None:
    folder, text = tiny.save(tiny.build("olmoe"), tmp_path / "model"), windows(5, 12)
    made = setting(experts.load(folder).anatomy, text)
    whole = slope_products(made, draws=2, windows=0)["pairs"]
    streamed = setting(experts.load(folder, memory="streamed").anatomy, text, batch=3)
    for other in (setting(made.anatomy, text, batch=1), streamed):
        found = slope_products(other, draws=2, windows=0)["pairs"]
        np.testing.assert_allclose(found, whole, rtol=1e-3, atol=1e-5 * np.abs(whole).max())


def test_labels_follow_the_predictions() -> None:
    """20,000 draws from (.5, .3, .2): shares within four standard errors (.014)."""
    probabilities = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    logits = probabilities.log().expand(1, 20_000, 3)
    losses = label_losses(logits, uniforms(torch.zeros(1, 20_000), 1))
    shares = [float((losses.exp() * p - 1).abs().lt(1e-9).double().mean()) for p in probabilities]
    np.testing.assert_allclose(shares, probabilities, atol=0.014)


def test_the_choice_is_the_cheapest_set_of_its_own_objective() -> None:
    """Against sets that differ by one swap within a layer: none is cheaper."""
    anatomy, text = dissect(tiny.build("olmoe")), windows(4, 12)
    made = setting(anatomy, text)
    pairs = slope_products(made, draws=1, windows=0)["pairs"]
    score = scores_of("fisher_pairs", made)
    removed = (np.argsort(np.argsort(score, axis=1), axis=1) < 4).reshape(-1)

    def cost(marks: np.ndarray) -> float:
        return float(pairs[np.ix_(marks, marks)].sum())

    for out in np.flatnonzero(removed):
        for kept in np.flatnonzero(~removed):
            if out // 8 == kept // 8:
                other = removed.copy()
                other[[out, kept]] = False, True
                assert cost(other) >= cost(removed) * (1 - 1e-9)
