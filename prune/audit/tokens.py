"""`excise audit`: does a criterion rank the active experts of a token by what removing them costs?"""

from typing import cast

import pandas as pd
import torch

from criteria.scores import Scores
from experts.arrays import Marks
from experts.effects.instrument import Instrument
from experts.effects.means import mean_outputs
from experts.effects.precision import HALF
from experts.errors import ExciseError
from experts.keys import environment, key_of
from experts.modes import Mode, Scope
from experts.notes import tell
from prune.audit.curves import Curves
from prune.audit.report import markdown
from prune.audit.result import AuditResult, RecipeAudit
from prune.effects.measurement import fill
from prune.effects.partial_table import PartialTable
from prune.session.prepared import Prepared
from prune.session.refusals import check_audit
from prune.session.run_folder import write_json, write_text
from prune.session.session import Session
from validate.active_experts import Removals
from validate.expert_pairs import pick_pairs, rank_correlations
from validate.position_sample import sample_positions
from validate.positions import read_positions
from validate.rig import check_rig, rig_plan
from validate.token_audit import audit_outcomes

EFFECTS, POSITIONS = "effects.parquet", "positions.csv"


class Audit:
    """The audit of a recipe, on its validation text."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared, self.recipe, self.folder = prepared, prepared.recipe, prepared.folder
        self.settings, self.session = prepared.recipe.validation.audit, Session(prepared)
        check_audit(prepared)
        layers = prepared.shape.layers
        self.layers = tuple(sorted({layers.index(layer) for layer in self.settings.layers or layers}))

    def execute(self) -> AuditResult:
        """Write audit.json, .csv and .md, and raw rows: effects.parquet, positions.csv, progressive.csv."""
        self.session.check_texts()
        chosen = self._chosen()
        with self.folder.held():
            write_json(self.folder.path / "environment.json", environment())
            table = self._scores()
            effects = self._effects(chosen)
            rows = pick_pairs(effects, table, self.settings.seed)
            write_text(self.folder.path / POSITIONS, rows.to_csv(index=False))
            rows = read_positions(self.folder.path / POSITIONS)
            result = cast(AuditResult, self._result(rows, effects, table))
            if self.recipe.validation.progressive:
                result["progressive"] = Curves(self.session, table, self.layers).execute()
            write_json(self.folder.path / "audit.json", result)
            write_text(self.folder.path / "audit.csv", _flat(result).to_csv(index=False))
            write_text(self.folder.path / "audit.md", markdown(result))
            return result

    def _scores(self) -> list[Scores]:
        """Of every criterion; a search goes down to the recipe's budget."""
        budget = self.prepared.budgets[self.recipe.prune.scope]
        if any(criterion.searches for criterion in self.prepared.criteria):
            self.session.check_room(budget)
        return self.session.scores(budget)

    def _chosen(self) -> Marks:
        """Which positions are read [L, N, W − 1]."""
        settings = self.settings
        windows, num_layers = self.session.texts.validation, self.prepared.shape.num_layers
        try:
            return sample_positions(windows, num_layers, self.layers, settings.positions, settings.seed)
        except ExciseError as error:
            raise ExciseError(f"validate.audit.{error}") from error

    def _effects(self, chosen: Marks) -> pd.DataFrame:
        """What removing every active expert costs at the chosen positions; nothing is measured twice."""
        path, settings = self.folder.path / EFFECTS, self.settings
        identity = (
            self.session.model.identity,
            self.session.texts.validation.hash,
            settings.scope,
            settings.mode,
        )
        calibration = self.session.texts.calibration.hash if settings.mode is Mode.MEAN else ""
        key = key_of("audit", *identity, calibration, self.layers, settings.positions, settings.seed)
        if not self.folder.valid("audit", key, EFFECTS):
            parts = PartialTable(path, key, force=True)
            if missing := parts.missing(len(chosen[0]), self.layers):
                self._measure(chosen, missing, parts)
            self.folder.begin("audit")
            parts.join(len(chosen[0]), self.layers)
            self.folder.finish("audit", key)
        effects = pd.read_parquet(path).rename(columns={"document": "window"})
        effects["document"] = self.session.texts.validation.document[effects["window"]]
        return effects

    def _measure(self, chosen: Marks, missing: dict[int, list[int]], parts: PartialTable) -> None:
        anatomy, scope = self.session.anatomy, Scope(self.settings.scope)
        check_rig(anatomy, self.session.texts.validation, rig_plan(anatomy.shape))
        instrument, tokens = self._instrument(scope), tokens_of(self.session)
        if anatomy.model.dtype in HALF:
            tell(
                f"measured in {anatomy.model.dtype}: effects carry its rounding, some hundredths of a nat; "
                "dtype: float32 avoids it"
            )
        fill(
            parts,
            instrument,
            tokens,
            missing,
            Removals(scope, positions=chosen),
            f"audit ({scope}, {self.settings.mode})",
        )

    def _instrument(self, scope: Scope) -> Instrument:
        """For removals on the recipe's model; mode mean takes means over the calibration text."""
        anatomy, mode = self.session.anatomy, self.settings.mode
        means = None
        if mode is Mode.MEAN:
            means = mean_outputs(anatomy, self.session.texts.calibration.tensor(anatomy.device))
        return Instrument.ready(anatomy, mode, scope, tokens_of(self.session), means=means)

    def _result(self, rows: pd.DataFrame, effects: pd.DataFrame, table: list[Scores]) -> RecipeAudit:
        return {
            **audit_outcomes(rows, self.settings.ddof, rank_correlations(effects, table)),
            "scope": self.settings.scope,
            "mode": self.settings.mode,
            "formulas": {scores.criterion: scores.formula for scores in table},
            "text": {
                "calibration": self.session.texts.calibration.summary(),
                "validation": self.session.texts.validation.summary(),
            },
            "model": self.prepared.model,
            "notes": self._notes(),
            "run": str(self.folder.path),
        }

    def _notes(self) -> list[str]:
        """A search ranks by one budget, and no column of the table shows which."""
        budget = self.prepared.budgets[self.recipe.prune.scope]
        searches = [one.name for one in self.prepared.criteria if one.searches]
        return [f"{name} is the search down to {budget.text}" for name in searches]


def _flat(result: AuditResult) -> pd.DataFrame:
    """Every cell by every outcome, a row each."""
    found = []
    for outcome, cells in {"delta": result["cells"], **result["outcomes"]}.items():
        for cell in cells:
            by = {f"passes_{name}": held for name, held in cell["passes_by"].items()}
            found.append(
                {
                    "outcome": outcome,
                    **{key: value for key, value in cell.items() if key != "passes_by"},
                    **by,
                }
            )
    return pd.DataFrame(found)


def tokens_of(session: Session) -> torch.Tensor:
    """The validation windows on the model's device."""
    return session.texts.validation.tensor(session.model.device)
