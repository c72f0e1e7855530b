"""What several processes compute, beside what one does; torchrun starts it (tests/experts/test_team.py).

torchrun --nproc-per-node 2 --no-python python -m tests.support.together MODEL RESULT [streamed]
"""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from criteria.by_name import resolve
from criteria.measure import measure
from criteria.observe import observe
from experts.anatomy import Anatomy
from experts.disk.layout import lay_out
from experts.disk.shards import open_checkpoint
from experts.effects.instrument import Instrument
from experts.memory_settings import MemorySettings
from experts.model import Model
from experts.modes import Mode, Scope
from experts.ranks import join
from experts.team import Alone, dismiss, serve
from tests.criteria.test_causal import setting
from tests.support.inputs import windows
from validate.active_experts import Removals
from validate.effect_table import measure_effects
from validate.plan_losses import plan_losses
from validate.progressive import by_gate_weight, by_order

NAMES = (
    "causal_removal",
    "causal_position",
    "causal_greedy:rounds=2,outcome=kl",
    "causal_swaps:shortlist=3,passes=2",
    "gradient",
    "fisher",
    "integrated:steps=2",
)


def main() -> None:
    """Rank 0 writes the largest differences by name; the others serve."""
    ranks = join()
    assert ranks is not None, "torchrun starts several"
    if ranks.rank > 0:
        if os.environ.get("KILL") == str(ranks.rank):
            os.kill(os.getpid(), signal.SIGKILL)
        serve(ranks)
        return
    folder, result, *mode = sys.argv[1:]
    memory = MemorySettings("streamed" if mode else "auto")
    together = Model(lay_out(open_checkpoint(Path(folder))), memory=memory).anatomy
    assert together.team.size == ranks.size
    alone = replace(together, team=Alone())
    first, second = results(together), results(alone)
    gaps = {name: gap(first[name], second[name]) for name in first}
    Path(result).write_text(json.dumps(gaps))
    dismiss(ranks)


def results(anatomy: Anatomy) -> dict[str, Any]:
    """Numbers of everything that is dealt to processes."""
    text, plan = windows(5, 12), None
    found: dict[str, Any] = {"plans": plan_losses(anatomy, text, [plan, *plans(anatomy)], batch=2)}
    statistics = observe(anatomy, text, batch=2)
    found["statistics"] = np.concatenate([statistics.moments.ravel(), statistics.together.ravel()])
    context = replace(setting(anatomy, text), batch=2)
    for name in NAMES:
        measurement = resolve(name).measurement
        assert measurement is not None
        arrays = measure(measurement, context)
        found[name] = np.concatenate([array.ravel() for array in arrays.values()])
    tokens = text.tensor("cpu")
    instrument = Instrument(anatomy, Mode.ZERO)
    tables: dict[tuple[int, int], Any] = {}
    measure_effects(
        instrument,
        tokens,
        dict.fromkeys(range(5), (0, 1)),
        Removals(Scope.POSITION),
        lambda window, row, table: tables.update({(window, row): table["delta"]}),
    )
    found["effects"] = np.concatenate([tables[key] for key in sorted(tables)])
    curves = by_order(instrument, tokens, {0: {"up": np.arange(8)}}, 3)
    found["curves"] = curves[0]["up"].ravel()
    chosen = {1: text.readable}
    found["largest"] = by_gate_weight(instrument, tokens, chosen, 2)[1].ravel()
    return found


def plans(anatomy: Anatomy) -> list[Any]:
    """Three plans that keep half the experts."""
    from experts.plan import Plan

    kept = ((0, 1, 2, 3), (1, 3, 5, 7), (2, 3, 6, 7))
    return [Plan(8, dict.fromkeys(anatomy.shape.layers, ids)) for ids in kept]


def gap(first: np.ndarray, second: np.ndarray) -> float:
    """The largest difference; −1 where nothing differs, not even a bit."""
    if np.array_equal(first, second, equal_nan=True):
        return -1.0
    return float(np.nanmax(np.abs(first - second) / np.maximum(np.abs(second), 1e-300)))


if __name__ == "__main__":
    main()
