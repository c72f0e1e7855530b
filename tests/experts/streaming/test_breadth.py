"""Layers from disk against whole loads, bit by bit: every type and wrapper."""

from pathlib import Path

import pytest

from experts.anatomy import dissect
from experts.errors import ExciseError
from experts.loading import load_network
from tests.support import architectures, tiny, wrappers
from tests.support.streaming import differences, opened


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [*architectures.types(), *wrappers.OWN])
def test_every_type(model_type: str, tmp_path: Path) -> None:
    """In bfloat16, where types keep some weights in float32. What is refused whole is refused here too."""
    kind = wrappers if model_type in wrappers.OWN else architectures
    folder = tiny.save(kind.build(model_type).bfloat16(), tmp_path / "model")
    try:
        dissect(load_network(folder))
    except ExciseError as refusal:
        with pytest.raises(ExciseError) as caught:
            opened(folder)
        assert str(caught.value) == str(refusal)
        return
    assert not differences(folder)
