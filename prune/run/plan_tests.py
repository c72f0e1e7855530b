"""Every criterion's plan, its reverse and random plans on held-out text; the instrument is checked first."""

from dataclasses import dataclass

from criteria.scores import Scores
from criteria.text.windows import Windows
from experts.keys import key_of
from experts.plan import Plan
from prune.checkpoint.slices import pruned_size
from prune.results import AllocationJson
from prune.run.result import ValidationResult
from prune.session.measures import measures_of, row_key
from prune.session.refits import Refits
from prune.session.run_folder import write_json
from prune.session.session import Session
from validate.agreement import agreement
from validate.chance import Judgement, plans_against_random
from validate.evidence import Evidence, Judged
from validate.measure import Measure
from validate.refitted import with_refit
from validate.verdict import DOMAIN_RULE, RULE

RESULT = "validation.json"


@dataclass(frozen=True)
class Candidate:
    """A plan to be tested, and what it was selected from."""

    scores: Scores
    plan: Plan


class PlanTests:
    """The stage `validate` of a run.

    Args:
        session: the recipe at work
        candidates: the plan that is written first
        allocations: how counts per layer were chosen that the scores did not decide
    """

    def __init__(
        self, session: Session, candidates: list[Candidate], allocations: list[AllocationJson]
    ) -> None:
        self.session, self.candidates, self.allocations = session, candidates, allocations
        self.recipe, self.folder = session.recipe, session.folder
        self.layout = session.prepared.layout
        self.refits = Refits(session) if self.recipe.refit else None

    @property
    def table(self) -> list[Scores]:
        """Scores of every criterion, each once."""
        return list({candidate.scores.criterion: candidate.scores for candidate in self.candidates}.values())

    def execute(self) -> ValidationResult:
        """Content of validation.json; what an earlier run measured from the same inputs is used again."""
        stage = self._key()
        if kept := self.folder.kept("validate", stage, ValidationResult, RESULT):
            return kept
        result = self._result()
        self.folder.begin("validate")
        write_json(self.folder.path / RESULT, result)
        self.folder.finish("validate", stage)
        return result

    def _key(self) -> str:
        tasks = self.session.tasks_identity if self.recipe.validation.tasks else ""
        return key_of(
            "validate by domain",
            row_key(self.session),
            # The scores themselves: a user's criterion can change behind an unchanged name.
            [scores.digest for scores in self.table],
            self.recipe.model_dump(mode="json", exclude={"finetune"}),
            self.session.texts.calibration.hash,
            tasks,
            self.refits.key if self.refits else "",
        )

    def _result(self) -> ValidationResult:
        texts, plan = self.session.texts, self.candidates[0].plan
        before = self.layout.checkpoint.size
        measures = measures_of(self.session)
        after = self.refits.measures(plan) if self.refits else []
        judgement = self._judgement(measures, after)
        tested = with_refit(judgement, measures[0], after, self.recipe.validation.random_seed)
        return {
            "plans": [
                {**one, "size": self._size(candidate.plan)}
                for one, candidate in zip(tested, self.candidates, strict=True)
            ],
            "rule": _rule(judgement.evidence),
            "checks": [check.to_json() for check in judgement.checks],
            "loss": measures[0].mean(measures[0].values(None)),
            "chance": self.recipe.validation.chance,
            "text": {"calibration": texts.calibration.summary(), "validation": texts.validation.summary()},
            "shared_documents": len(_documents(texts.calibration) & _documents(texts.validation)),
            "model": self.session.prepared.model,
            "size": {"before": before, "removed": before - self._size(plan)},
            "agreement": agreement(self.table),
            "without_data": int(self.session.calibration.observed.unreached.sum()),
            "allocations": self.allocations,
            "protected": int(self.table[0].protected.sum()),
        }

    def _judgement(self, measures: list[Measure], after: list[Measure]) -> Judgement:
        settings = self.recipe.validation
        return plans_against_random(
            self.session.model,
            [candidate.plan for candidate in self.candidates],
            self.session.texts.validation,
            measures,
            plans=settings.random_plans,
            seed=settings.random_seed,
            null=settings.chance,
            later=after,
        )

    def _size(self, plan: Plan) -> int:
        """Bytes of the pruned checkpoint."""
        return pruned_size(self.layout, plan, dequantise=self.session.prepared.dequantises)


def _rule(evidence: list[Evidence[Judged]]) -> str:
    rule = f"{RULE} Not corrected for the number of criteria."
    return f"{rule} {DOMAIN_RULE}" if evidence[0].domains else rule


def _documents(windows: Windows) -> set[str]:
    """Documents that windows come from; with other windows in both texts, they are not quite unseen."""
    return {windows.documents[number] for number in windows.document}
