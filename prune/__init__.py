"""Prune a model from a recipe, compare criteria, export slimmed checkpoints."""

from typing import TYPE_CHECKING

from experts.lazily import lazily

if TYPE_CHECKING:
    from prune.checkpoint.export_model import export as export

_PUBLIC = {"export": "prune.checkpoint.export_model"}
__all__ = ["export"]
__getattr__, __dir__ = lazily(__name__, _PUBLIC)
