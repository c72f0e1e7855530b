"""Text of the model itself on every type: its cache gives what plain forwards give."""

import numpy as np
import pytest
import torch

from criteria.text.sampled.draw import continued
from experts.errors import ExciseError
from tests.support import architectures
from tests.support.architecture_table import ALL, REFUSED, build

# With 3 layers these have no layer of attention, which transformers' cache wants to have.
LONGER = {
    "bailing_hybrid",
    "jamba",
    "kimi_linear",
    "qwen3_5_moe",
    "qwen3_5_moe_text",
    "qwen3_next",
}
# Type -> why its loop cannot be run.
WITHOUT_A_LOOP = {
    "qwen3_omni_moe_thinker": "vision_start_token_id",
    # Longer ones cannot be built small.
    "qwen4_exp": "only contain LinearAttention layers",
    "qwen4_exp_text": "only contain LinearAttention layers",
}
TOKENS = 12


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [name for name in ALL if name not in REFUSED])
def test_every_type_writes(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read again by one plain forward, every token is the one that the random number chooses."""
    if model_type in LONGER:
        monkeypatch.setitem(architectures.GENERIC, "num_hidden_layers", 8)
    model = build(model_type)
    first, numbers = np.array([[65], [66]]), np.random.default_rng(0).random((2, TOKENS - 1))
    if why := WITHOUT_A_LOOP.get(model_type):
        with pytest.raises(ExciseError, match=f"generation loop cannot be run .*{why}"):
            continued(model, first, numbers, 1.0, lambda _: None)
        return
    written = continued(model, first, numbers, 1.0, lambda _: None)
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(written), use_cache=False).logits.double().numpy()
    for row, window in enumerate(written):
        for place, uniform in enumerate(numbers[row]):
            weights = np.exp(logits[row, place] - logits[row, place].max())
            expected = np.searchsorted(weights.cumsum(), uniform * weights.sum(), "right")
            assert window[place + 1] == expected
