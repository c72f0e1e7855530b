"""All checks of the instrument that need no written checkpoint, in one sweep over the layers."""

import numpy as np

from criteria.text.windows import Windows
from experts.anatomy import Anatomy
from experts.plan import Plan
from experts.shape import Shape
from validate.rig.check import Check, require
from validate.rig.effects import LocalProbe, PlantedProbe
from validate.rig.losses import LossProbe
from validate.rig.probe import run_probes


def check_rig(anatomy: Anatomy, windows: Windows, plan: Plan) -> list[Check]:
    """Run the checks on the first window.

    Args:
        anatomy: the unpruned model
        windows: held-out text; its first window is used
        plan: A plan to restrict and cut the model to

    Returns:
        The checks, all of them passed.

    Raises:
        ExciseError: that names the first failed check.
    """
    first = windows.select(np.array([0]))
    tokens = first.tensor(anatomy.device)
    probes = [LossProbe(anatomy, first, plan), LocalProbe(anatomy, tokens), PlantedProbe(anatomy, tokens)]
    checks = run_probes(anatomy, probes, plan.digest)
    require(checks)
    return checks


def rig_plan(shape: Shape) -> Plan:
    """Return a plan to check the instrument with, where no other is at hand.

    It keeps the first half of every router group, or as few as can route.
    """
    count = max(shape.even_below(shape.num_experts // 2), shape.smallest)
    kept = shape.first_of_each_group(min(count, shape.num_experts))
    return Plan(shape.num_experts, dict.fromkeys(shape.layers, kept), criterion="check of the instrument")
