"""The demo stored in float32: the same numbers, faster on CPUs without units for bfloat16."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from experts.disk import names

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def in_float32(recipes: Path) -> Path:
    """Write the demo below a folder of recipes, which is returned."""
    before, folder = names.recipes_folder() / "demo" / "model", recipes / "demo" / "model"
    shutil.copytree(before, folder)
    wide = {name: tensor.float() for name, tensor in load_file(before / WEIGHTS).items()}
    save_file(wide, folder / WEIGHTS, {"format": "pt"})
    config = json.loads((before / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "torch_dtype": "float32"}))
    return recipes


@contextmanager
def demo_of(recipes: Path) -> Iterator[None]:
    """Inside the block `demo` is the model below another folder of recipes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(names, "recipes_folder", lambda: recipes)
        yield
