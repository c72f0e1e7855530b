"""Proof by intervention: plans against random plans, token-level audits, exact effects of removals."""

from typing import TYPE_CHECKING

from experts.lazily import lazily

if TYPE_CHECKING:
    from validate.chance import against_random as against_random
    from validate.evidence import Evidence as Evidence
    from validate.removals import TokenAudit as TokenAudit
    from validate.removals import audit as audit
    from validate.removals import effects as effects

_PUBLIC = {
    "Evidence": "validate.evidence",
    "TokenAudit": "validate.removals",
    "against_random": "validate.chance",
    "audit": "validate.removals",
    "effects": "validate.removals",
}
__all__ = ["Evidence", "TokenAudit", "against_random", "audit", "effects"]
__getattr__, __dir__ = lazily(__name__, _PUBLIC)
