"""What ranks experts: calibration text, statistics, criteria, and the selection of a plan."""

from typing import TYPE_CHECKING

from experts.lazily import lazily

if TYPE_CHECKING:
    from criteria.budget import Budget as Budget
    from criteria.budget_request import budget_for as budget_for
    from criteria.ranking import score as score
    from criteria.ranking import select as select
    from criteria.scores import Scores as Scores
    from criteria.text.for_model import sampled as sampled
    from criteria.text.for_model import windows as windows
    from criteria.text.sources import Source as Source
    from criteria.text.windows import Windows as Windows

_PUBLIC = {
    "Budget": "criteria.budget",
    "Scores": "criteria.scores",
    "Source": "criteria.text.sources",
    "Windows": "criteria.text.windows",
    "budget_for": "criteria.budget_request",
    "sampled": "criteria.text.for_model",
    "score": "criteria.ranking",
    "select": "criteria.ranking",
    "windows": "criteria.text.for_model",
}
__all__ = ["Budget", "Scores", "Source", "Windows", "budget_for", "sampled", "score", "select", "windows"]
__getattr__, __dir__ = lazily(__name__, _PUBLIC)
