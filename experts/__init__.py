"""The model as layers of routed experts: load it, see into it, restrict it reversibly, cut it.

Public names are imported at their first use, so that reading headers does not wait for torch.
"""

from typing import TYPE_CHECKING

from experts.lazily import lazily

if TYPE_CHECKING:
    from experts.errors import ExciseError as ExciseError
    from experts.interventions import ablated as ablated
    from experts.interventions import restricted as restricted
    from experts.memory_settings import MemorySettings as MemorySettings
    from experts.model import Model as Model
    from experts.model import load as load
    from experts.modes import Mode as Mode
    from experts.plan import Plan as Plan
    from experts.shape import Shape as Shape

_PUBLIC = {
    "ExciseError": "experts.errors",
    "MemorySettings": "experts.memory_settings",
    "Mode": "experts.modes",
    "Model": "experts.model",
    "Plan": "experts.plan",
    "Shape": "experts.shape",
    "ablated": "experts.interventions",
    "load": "experts.model",
    "restricted": "experts.interventions",
}
__all__ = ["ExciseError", "MemorySettings", "Mode", "Model", "Plan", "Shape", "ablated", "load", "restricted"]
__getattr__, __dir__ = lazily(__name__, _PUBLIC)
