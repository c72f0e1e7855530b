"""Prune a model from a recipe, compare criteria, export slimmed checkpoints."""

from typing import TYPE_CHECKING

from experts.lazily import lazily

if TYPE_CHECKING:
    from prune.checkpoint.export_model import export as export
    from prune.checkpoint.write import Exported as Exported

_PUBLIC = {
    "Exported": "prune.checkpoint.write",
    "export": "prune.checkpoint.export_model",
}
__all__ = ["Exported", "export"]
__getattr__, __dir__ = lazily(__name__, _PUBLIC)
