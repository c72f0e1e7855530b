"""Whether a recovery fits beside the unpruned model in memory."""

from torch import nn

from criteria.text.windows import Windows
from experts.memory import free_bytes
from experts.plan import Plan
from finetune.targets import find_targets
from prune.recipe.schema import FinetuneSettings
from prune.session.session import Session

BYTES_TRAINED = 20  # of a trained parameter: itself, its gradient, two moments of AdamW, the last good copy
LOGITS_COPIES = 8  # of a batch, in float32: logits, softmax and gradients of both losses
FLOAT32 = 4.0  # bytes
SHARE = 0.8  # of the free memory that a recovery may take


def missing_memory(session: Session, settings: FinetuneSettings, windows: Windows, plan: Plan) -> str:
    """What a recovery needs and what is free, in words; empty where it fits."""
    free = free_bytes(session.model.device)
    needed = _logits(session, settings, windows) + _adapters(session, settings, 1 - plan.fraction)
    if needed < SHARE * free:
        return ""
    return (
        f"recovery needs about {needed / 1e9:.1f} GB beside the unpruned model, "
        f"{free / 1e9:.1f} GB are free: "
        "the teacher's best logits are cached on disk "
        "(finetune.teacher.keep=memory keeps it in memory anyway)"
    )


def _logits(session: Session, settings: FinetuneSettings, windows: Windows) -> float:
    """Bytes of a batch's logits, softmax and gradients."""
    vocabulary = int(session.anatomy.model.config.get_text_config().vocab_size)
    positions = settings.batch * int(windows.tokens.shape[1])
    return LOGITS_COPIES * FLOAT32 * positions * vocabulary


def _adapters(session: Session, settings: FinetuneSettings, kept: float) -> float:
    """Bytes of adapters with their optimiser, and of the adapted copies of weights that autograd keeps.

    Args:
        session: of the unpruned model
        settings: of the training
        kept: share of the experts that the plan keeps
    """
    weights = dict(session.anatomy.model.named_parameters())
    needed = 0.0
    for name in find_targets(session.anatomy, settings.targets).weights:
        size = _elements(weights[name], kept)
        rows, columns = weights[name].shape[-2:]
        needed += BYTES_TRAINED * settings.rank * (rows + columns) * size / (rows * columns)
        if not settings.gradient_checkpointing:
            needed += size * weights[name].element_size()
    return needed


def _elements(weight: nn.Parameter, kept: float) -> float:
    """Elements that are trained: of a stack of experts, the share that is kept."""
    return weight.numel() * (kept if weight.ndim == 3 else 1)
