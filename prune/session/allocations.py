"""Plans of a recipe's budgets; counts per layer are measured where it asks for that, once for all runs."""

from criteria.budget import Budget
from criteria.ranking import select
from criteria.scores import Scores
from experts.notes import tell
from experts.plan import Plan
from experts.stored_arrays import StoredArrays
from finetune.allocation.allocate import allocated, cuts_of, grid_of
from finetune.allocation.costs import Costs, key_of_cuts, measure_cuts
from finetune.allocation.cut import Cut
from finetune.allocation.grid import Grid
from finetune.allocation.result import Allocation
from prune.results import AllocationJson
from prune.session.refits import Refits
from prune.session.run_folder import write_text
from prune.session.session import Session
from prune.tables import csv_text

FILE = "allocation.csv"
COLUMNS = ("criterion", "fraction", "layer", "by_scores", "chosen", "experts", "kl", "rise")


class Allocations:
    """The plans of a session.

    Attributes:
        session: the recipe at work
        made: what was allocated so far
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.made: list[Allocation] = []

    def plan(self, scores: Scores, budget: Budget) -> Plan:
        """The plan of a ranking under a budget; measures its counts per layer where the recipe says so."""
        if budget.scope == "layer" or self.session.recipe.prune.counts == "scores":
            return select(scores, budget=budget)
        if (grid := Grid(self.session.shape, budget, scores.protected)).is_fixed:
            tell(grid.nothing_to_choose)
            return select(scores, budget=budget)
        grid = grid_of(scores, budget, self.session.model)
        allocation = allocated(scores, grid, self._costs(cuts_of(scores, grid)))
        self.made.append(allocation)
        return allocation.plan

    def _costs(self, cuts: list[Cut]) -> Costs:
        """Kept from any run, taken up where this one was interrupted, or new."""
        session, request = self.session, Refits(self.session).request
        key = key_of_cuts(cuts, request, session.model.identity)
        name = f"{key}.safetensors"
        if kept := session.cache.read(name, lambda path: StoredArrays(path, key).read() or None):
            return Costs(**kept)
        partial = StoredArrays(session.folder.path / "allocation.partial.safetensors", key)
        costs = measure_cuts(session.model.anatomy, cuts, request, partial)
        session.cache.write(name, lambda path: StoredArrays(path, key).write(vars(costs)))
        partial.clear()
        return costs

    def write(self) -> list[AllocationJson]:
        """Write allocation.csv, where there is something to be said; return the same for results."""
        rows = [_json(allocation) for allocation in self.made]
        path = self.session.folder.path / FILE
        if rows:
            write_text(path, csv_text(COLUMNS, [line for row in rows for line in _lines(row)]))
        else:
            path.unlink(missing_ok=True)
        return rows


def _json(allocation: Allocation) -> AllocationJson:
    plan = allocation.plan
    return {
        "criterion": plan.criterion,
        "fraction": round(plan.fraction, 6),
        "layers": list(plan.counts),
        "by_scores": list(allocation.by_scores.values()),
        "chosen": list(plan.counts.values()),
        "measured": list(allocation.measured),
        "kl": _known(allocation.divergence.tolist()),
        "rise": _known(allocation.rise.tolist()),
        "expected": allocation.expected,
        "expected_by_scores": allocation.expected_by_scores,
    }


def _known(table: list[list[float]]) -> list[list[float | None]]:
    """Without nan, which JSON does not have."""
    return [[None if value != value else value for value in row] for row in table]


def _lines(row: AllocationJson) -> list[dict[str, object]]:
    """The rows of allocation.csv, one per layer and measured count."""
    return [
        {
            "criterion": row["criterion"],
            "fraction": row["fraction"],
            "layer": layer,
            "by_scores": row["by_scores"][place],
            "chosen": row["chosen"][place],
            "experts": experts,
            "kl": row["kl"][place][number],
            "rise": row["rise"][place][number],
        }
        for place, layer in enumerate(row["layers"])
        for number, experts in enumerate(row["measured"])
    ]
