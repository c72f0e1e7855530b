"""`excise audit`: does a criterion rank the active experts of a token by what removing them costs?"""

import pandas as pd

from criteria.scores import Scores
from experts.arrays import Marks
from experts.errors import ExciseError
from experts.keys import environment, key_of
from experts.modes import Mode, Scope
from prune.audit.curves import Curves
from prune.audit.report import markdown
from prune.audit.result import AuditResult
from prune.effects.partial_table import PartialTable
from prune.session.prepared import Prepared
from prune.session.refusals import check_audit
from prune.session.run_folder import write_json, write_text
from prune.session.session import Session
from validate.active_experts import Removals
from validate.expert_pairs import pick_pairs, rank_correlations
from validate.measured_removals import by_document, measure_removals
from validate.position_sample import sample_positions
from validate.positions import read_positions
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
            result = self._result(rows, effects, table)
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
        return by_document(pd.read_parquet(path), self.session.texts.validation)

    def _measure(self, chosen: Marks, missing: dict[int, list[int]], parts: PartialTable) -> None:
        """Removals on the recipe's model; mode mean takes means over the calibration text."""
        measure_removals(
            self.session.model,
            self.session.texts.validation,
            missing,
            Removals(Scope(self.settings.scope), positions=chosen),
            mode=self.settings.mode,
            means_of=self.session.texts.calibration,
            keep=parts.keep,
            title="audit",
        )

    def _result(self, rows: pd.DataFrame, effects: pd.DataFrame, table: list[Scores]) -> AuditResult:
        cells = audit_outcomes(rows, self.settings.ddof, rank_correlations(effects, table))
        result: AuditResult = {
            "rule": cells["rule"],
            "ddof": cells["ddof"],
            "alpha": cells["alpha"],
            "passing": cells["passing"],
            "cells": cells["cells"],
            "outcomes": cells["outcomes"],
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
        if self.recipe.validation.progressive:
            result["progressive"] = Curves(self.session, table, self.layers).execute()
        return result

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
