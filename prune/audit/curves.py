"""The curves of progressive removal of a recipe: measured layer by layer, kept, and written with their raw rows."""

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from criteria.experiment_context import Store
from criteria.scores import Scores
from criteria.statistics import Array
from experts.effects.instrument import Instrument
from experts.keys import key_of
from experts.modes import Mode, Scope
from experts.notes import tell
from prune.session.run_folder import write_text
from prune.session.session import Session
from validate.null import number
from validate.progressive import CLIFF, Curve, by_gate_weight, by_order, curve, orders_of

AT_TOKEN = "gate weight, at the token"  # noqa: S105 - kind (a)
RANDOM = "random"
ROWS = "progressive.csv"


class Curves:
    """Of the scores in `table`, on evenly spread validation windows. layers: positions among the MoE layers."""

    def __init__(self, session: Session, table: list[Scores], layers: tuple[int, ...]) -> None:
        settings = session.recipe.validation.progressive
        assert settings is not None, "asked for only where there are some"
        self.settings, self.session, self.table, self.shape, self.layers = (
            settings,
            session,
            table,
            session.shape,
            layers,
        )
        count = min(settings.windows, len(session.validation))
        self.numbers = np.unique(np.linspace(0, len(session.validation) - 1, count).round().astype(np.int64))
        self.windows = session.validation.select(self.numbers)
        self.removed = min(settings.max_removed, self.shape.num_experts - self.shape.smallest)

    def execute(self) -> dict[str, Any]:
        """Writes the raw rows; gives the curves."""
        arrays = self._measured()
        rows = pd.concat([self._rows(layer, arrays) for layer in self.layers])
        write_text(self.session.folder.path / ROWS, rows.to_csv(index=False))
        curves = [one for layer in self.layers for one in self._curves(layer, arrays)]
        return {
            "cliff": CLIFF,
            "windows": len(self.windows),
            "positions": self.settings.positions,
            "draws": self.settings.draws,
            "modes": {"at the token": Mode.ZERO, "from the layer": Mode.REROUTE},
            "curves": [_json(one) for one in curves],
        }

    # Measuring.

    def _measured(self) -> dict[str, Array]:
        """Raw rows by "layer/order": [J, P] at tokens, [J, N] from the layer. A finished layer is never measured again."""
        session, identity = self.session, [(scores.criterion, scores.digest) for scores in self.table]
        key = key_of("progressive", session.loaded, self.windows.hash, self.settings.model_dump(), identity)
        store = Store(session.folder.path / "progressive.safetensors", key)
        arrays = store.read()
        missing = [layer for layer in self.layers if f"{layer}/{AT_TOKEN}" not in arrays]
        if missing:
            tokens = torch.from_numpy(self.windows.tokens).to(session.anatomy.device)
            at_token, from_layer = self._instruments(tokens)
            for layer in tqdm(missing, desc="progressive removal", unit="layer", delay=2):
                found = by_order(from_layer, tokens, layer, self._orders(layer), self.removed)
                found[AT_TOKEN] = by_gate_weight(
                    at_token, tokens, layer, self._positions(layer), self.settings.max_removed
                )
                arrays |= {f"{layer}/{name}": rows for name, rows in found.items()}
                store.write(arrays)
        return arrays

    def _instruments(self, tokens: torch.Tensor) -> tuple[Instrument, Instrument]:
        """For removals at a token (mode zero) and from a layer (mode reroute, as pruning does)."""
        at_token = Instrument(self.session.anatomy, Mode.ZERO, probabilities=False)
        from_layer = Instrument(self.session.anatomy, Mode.REROUTE, probabilities=False)
        at_token.check(tokens, Scope.POSITION)
        from_layer.check(tokens, Scope.CORPUS)
        for note in dict.fromkeys([*at_token.notes, *from_layer.notes]):
            tell(note)
        return at_token, from_layer

    def _orders(self, layer: int) -> dict[str, NDArray[np.int64]]:
        scores = {scores.criterion: scores.values[layer] for scores in self.table}
        return orders_of(scores, self.shape.num_experts, self.settings.draws, [self.settings.seed, layer])

    def _positions(self, layer: int) -> NDArray[np.bool_]:
        """The positions read at the token [N, W − 1]."""
        valid = self.windows.mask[:, 1:] & self.windows.mask[:, :-1]
        chosen, rng = np.zeros_like(valid), np.random.default_rng([self.settings.seed, layer])
        count = min(self.settings.positions, int(valid.sum()))
        chosen.flat[rng.choice(np.flatnonzero(valid), count, replace=False)] = True
        return chosen

    # Summing up.

    def _curves(self, layer: int, arrays: dict[str, Array]) -> list[Curve]:
        weights, documents = (
            (self.windows.mask[:, 1:] & self.windows.mask[:, :-1]).sum(axis=1).astype(float),
            self.windows.document,
        )
        draws = np.stack(
            [arrays[f"{layer}/{RANDOM} {draw}"] for draw in range(self.settings.draws)]
        )  # [R, J, N]
        # Row by row, as the curves are: an order with the same experts gone must tie to the last bit.
        chance = np.array([[np.average(row, weights=weights) for row in draw] for draw in draws])
        at = self.windows.document[np.nonzero(self._positions(layer))[0]]
        rows, index = arrays[f"{layer}/{AT_TOKEN}"], self.shape.layers[layer]
        found = [curve(index, AT_TOKEN, rows, np.ones(rows.shape[1]), at)]
        for scores in self.table:
            both = (scores.criterion, f"reversed:{scores.criterion}")
            found += [
                curve(index, name, arrays[f"{layer}/{name}"], weights, documents, chance) for name in both
            ]
        spread = tuple(map(float, chance.std(axis=0, ddof=1)))
        return [*found, replace(curve(index, RANDOM, draws.mean(axis=0), weights, documents), sd=spread)]

    def _rows(self, layer: int, arrays: dict[str, Array]) -> pd.DataFrame:
        """layer, order, removed, window, position (empty where the whole window is read), document, delta."""
        where, position = np.nonzero(self._positions(layer))
        made = []
        for key, rows in arrays.items():
            at, _, name = key.partition("/")
            if int(at) == layer:
                places = where if name == AT_TOKEN else np.arange(len(self.windows))
                frame = {
                    "layer": self.shape.layers[layer],
                    "order": name,
                    "removed": np.repeat(np.arange(1, len(rows) + 1), rows.shape[1]),
                    "window": np.tile(self.numbers[places], len(rows)),
                    "position": np.tile(position, len(rows)) if name == AT_TOKEN else "",
                    "document": np.tile(self.windows.document[places], len(rows)),
                    "delta": rows.flatten(),
                }
                made.append(pd.DataFrame(frame))
        return pd.concat(made)


def _json(one: Curve) -> dict[str, Any]:
    intervals = [[number(interval.low), number(interval.high)] for interval in one.interval]
    return {
        **asdict(one),
        "interval": intervals,
        "p": [number(value) for value in one.p],
        "p_worse": [number(value) for value in one.p_worse],
        "cliff": one.cliff,
    }
