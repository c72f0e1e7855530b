"""Progressive removal on a recipe's text: measured layer by layer, kept, and written with its raw rows."""

import numpy as np
import pandas as pd
import torch

from criteria.scores import Scores
from experts.arrays import Array, Ids, Marks
from experts.effects.instrument import Instrument
from experts.keys import key_of
from experts.modes import Mode, Scope
from experts.stored_arrays import StoredArrays
from experts.sweep.progress import bar_around_sweeps
from prune.audit.curve_summary import AT_TOKEN, CurveRows, curves_of, raw_rows
from prune.audit.result import ProgressiveJson
from prune.session.run_folder import write_text
from prune.session.session import Session
from validate.progressive import CLIFF, by_gate_weight, by_order
from validate.removal_orders import orders_of
from validate.results import CurveJson

ROWS = "progressive.csv"
MODES = {"at the token": Mode.ZERO, "from the layer": Mode.REROUTE}


class Curves:
    """Curves of a recipe's criteria, on evenly spread validation windows.

    Attributes:
        rankings: the scores of every criterion.
        rows: the MoE layers that are measured, by their place among the L.
        numbers: which validation windows are read.
        windows: those windows.
        removed: most experts that are removed from a layer.
    """

    def __init__(self, session: Session, rankings: list[Scores], rows: tuple[int, ...]) -> None:
        settings = session.recipe.validation.progressive
        assert settings is not None, "asked for only where there are some"
        self.settings, self.session, self.shape = settings, session, session.shape
        self.rankings, self.rows = rankings, rows
        count = min(settings.windows, len(session.texts.validation))
        self.numbers = session.texts.validation.spread(count)
        self.windows = session.texts.validation.select(self.numbers)
        self.removed = min(settings.max_removed, self.shape.num_experts - self.shape.smallest)

    def execute(self) -> ProgressiveJson:
        """Measure what is missing, write the raw rows, and sum them up."""
        arrays = self._measured()
        layers = [self._layer(row, arrays) for row in self.rows]
        raw = pd.concat([raw_rows(layer) for layer in layers])
        write_text(self.session.folder.path / ROWS, raw.to_csv(index=False))
        criteria = [scores.criterion for scores in self.rankings]
        curves: list[CurveJson] = []
        for layer in layers:
            curves += curves_of(layer, criteria, self.settings.draws)
        return {
            "cliff": CLIFF,
            "windows": len(self.windows),
            "positions": self.settings.positions,
            "draws": self.settings.draws,
            "modes": dict(MODES),
            "curves": curves,
        }

    def _layer(self, row: int, arrays: dict[str, Array]) -> CurveRows:
        """What was measured in one layer, and where."""
        effects = {}
        for key, values in arrays.items():
            place, _, order = key.partition("/")
            if int(place) == row:
                effects[order] = values
        return CurveRows(
            layer=self.shape.layers[row],
            effects=effects,
            windows=self.windows,
            numbers=self.numbers,
            weights=self.windows.readable.sum(axis=1).astype(float),
            chosen=self._positions(row),
        )

    def _positions(self, row: int) -> Marks:
        """The positions of a layer at which removal at the token is measured [N, W − 1]."""
        rng = np.random.default_rng([self.settings.seed, row])
        readable = self.windows.readable
        count = min(self.settings.positions, int(readable.sum()))
        chosen = np.zeros_like(readable)
        chosen.flat[rng.choice(np.flatnonzero(readable), count, replace=False)] = True
        return chosen

    # Measuring.

    def _measured(self) -> dict[str, Array]:
        """ΔCE by "row/order": [J, P] at tokens, [J, N] from the layer.

        A finished layer is never measured again.
        """
        store = self._store()
        arrays = store.read()
        missing = [row for row in self.rows if f"{row}/{AT_TOKEN}" not in arrays]
        if not missing:
            return arrays
        tokens = self.windows.tensor(self.session.model.device)
        at_token, from_layer = self._instruments(tokens)
        # Layers that share the reading of the weights are measured together.
        together = [missing] if self.session.anatomy.weights.streamed else [[row] for row in missing]
        anatomy = self.session.anatomy
        with bar_around_sweeps(anatomy, "progressive removal", "layer", len(together)) as bar:
            for rows in together:
                orders = {row: self._orders(row) for row in rows}
                measured = by_order(from_layer, tokens, orders, self.removed)
                positions = {row: self._positions(row) for row in rows}
                largest = by_gate_weight(at_token, tokens, positions, self.settings.max_removed)
                for row in rows:
                    measured[row][AT_TOKEN] = largest[row]
                    arrays |= {f"{row}/{order}": values for order, values in measured[row].items()}
                store.write(arrays)
                bar.update(1)
        return arrays

    def _store(self) -> StoredArrays:
        """Where the rows are kept, under everything they depend on."""
        rankings = [(scores.criterion, scores.digest) for scores in self.rankings]
        inputs = (self.session.model.identity, self.windows.hash, self.settings.model_dump(), rankings)
        path = self.session.folder.path / "progressive.safetensors"
        return StoredArrays(path, key_of("progressive", *inputs))

    def _instruments(self, tokens: torch.Tensor) -> tuple[Instrument, Instrument]:
        """For removals at a token (mode zero) and from a layer (mode reroute, as pruning does)."""
        anatomy = self.session.anatomy
        at_token = Instrument.ready(anatomy, Mode.ZERO, Scope.POSITION, tokens, probabilities=False)
        from_layer = Instrument.ready(anatomy, Mode.REROUTE, Scope.CORPUS, tokens, probabilities=False)
        return at_token, from_layer

    def _orders(self, row: int) -> dict[str, Ids]:
        """Which expert of a layer goes first, second, …: by every criterion, its reverse, and at random."""
        scores = {ranking.criterion: ranking.values[row] for ranking in self.rankings}
        return orders_of(scores, self.shape.num_experts, self.settings.draws, [self.settings.seed, row])
