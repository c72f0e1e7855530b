"""Recovery: LoRA on a pruned model, with the unpruned one as teacher."""

from typing import TYPE_CHECKING

from experts.lazily import lazily

if TYPE_CHECKING:
    from finetune.recover_model import RecoveredModel as RecoveredModel
    from finetune.recover_model import recover as recover

_PUBLIC = {
    "RecoveredModel": "finetune.recover_model",
    "recover": "finetune.recover_model",
}
__all__ = ["RecoveredModel", "recover"]
__getattr__, __dir__ = lazily(__name__, _PUBLIC)
