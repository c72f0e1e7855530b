"""Recovery: LoRA on a pruned model, with the unpruned one as teacher; and the refit, which trains nothing."""

from typing import TYPE_CHECKING

from experts.lazily import lazily

if TYPE_CHECKING:
    from finetune.allocation.allocate import allocate as allocate
    from finetune.allocation.result import Allocation as Allocation
    from finetune.distill.settings import Local as Local
    from finetune.recover_model import RecoveredModel as RecoveredModel
    from finetune.recover_model import recover as recover
    from finetune.refit.result import Refit as Refit
    from finetune.refit_control import JudgedRefit as JudgedRefit
    from finetune.refit_control import refit_against_random as refit_against_random
    from finetune.refit_model import refit_experts as refit_experts
    from finetune.refit_model import refitted as refitted

_PUBLIC = {
    "Allocation": "finetune.allocation.result",
    "Local": "finetune.distill.settings",
    "Refit": "finetune.refit.result",
    "RecoveredModel": "finetune.recover_model",
    "allocate": "finetune.allocation.allocate",
    "recover": "finetune.recover_model",
    "JudgedRefit": "finetune.refit_control",
    "refit_against_random": "finetune.refit_control",
    "refit_experts": "finetune.refit_model",
    "refitted": "finetune.refit_model",
}
__all__ = [
    "Allocation",
    "JudgedRefit",
    "Local",
    "RecoveredModel",
    "Refit",
    "allocate",
    "recover",
    "refit_against_random",
    "refit_experts",
    "refitted",
]
__getattr__, __dir__ = lazily(__name__, _PUBLIC)
