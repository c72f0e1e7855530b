"""Checks of the instrument, before any data (docs/methods.md, 6). A failed check stops the run.

1. Own per-token losses average to the model's own loss.
2. A lifted intervention leaves the loss bit-equal.
3. Losses differ across positions.
4. An effect is exactly 0 at earlier positions, and where the removed expert is not active.
5. A planted expert that computes nothing has effect 0 everywhere.
6. Restricted = cut, bit-equal: block by block here, and the reloaded checkpoint after the export.
"""

from validate.rig.check import Check, require
from validate.rig.cutting import check_reloaded, last_logits
from validate.rig.suite import check_rig, rig_plan

__all__ = ["Check", "check_reloaded", "check_rig", "last_logits", "require", "rig_plan"]
