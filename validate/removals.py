"""What removals cost, and whether a criterion ranks experts by it: what users call."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from criteria.scores import Scores
from criteria.text.windows import Windows
from experts.effects.instrument import Instrument
from experts.effects.means import mean_outputs
from experts.errors import ExciseError
from experts.interventions import mode_of
from experts.model import Model
from experts.modes import Mode, Scope
from validate.active_experts import Removals, Table
from validate.audit_cells import Cell
from validate.effect_table import measure_effects
from validate.expert_pairs import pick_pairs, rank_correlations
from validate.position_sample import sample_positions
from validate.rig import check_rig, rig_plan
from validate.token_audit import Outcome
from validate.token_audit import audit as audit_cells


@dataclass(frozen=True)
class TokenAudit:
    """A token-level audit.

    Attributes:
        cells: every (criterion, layer) with its verdict by the signed ΔCE, controls last
        rows: the raw pairs, one per position and criterion
        effects: the raw removals, one per position and active expert
    """

    cells: tuple[Cell, ...]
    rows: pd.DataFrame
    effects: pd.DataFrame


def effects(
    model: Model,
    text: Windows,
    *,
    scope: Scope | str = Scope.POSITION,
    mode: Mode | str = Mode.ZERO,
    layers: Sequence[int] = (),
    experts: Sequence[int] = (),
) -> pd.DataFrame:
    """Measure what removing each expert costs, exactly: one row per intervention.

    The instrument is checked first (`validate.rig`), and its fast path is compared with plain replay.

    Args:
        model: a loaded model
        text: windows [N, W]
        scope: where an expert is removed: position (at one token), sequence (in its window), corpus
            (everywhere; rows are means over a window)
        mode: what removal means: zero, renormalize, reroute, mean (of the same text)
        layers: decoder layers; none = all with experts
        experts: ids; none = all in scope corpus, the active ones in the others

    Returns:
        A table with the columns document (number of the window), position, token, layer, expert, gate_weight,
        rank (0 = largest gate weight), baseline_loss, delta (ΔCE), kl; losses in nats.

    Raises:
        ExciseError: a layer or expert is not there, or removals cannot be measured on this model.

    Example:
        >>> import criteria, experts, validate
        >>> model = experts.load("demo")
        >>> text = criteria.windows(model, stdlib="code", split="test", sequences=1, length=32)
        >>> table = validate.effects(model, text, layers=[0])
        >>> len(table) == 31 * model.shape.top_k  # every position with a next token, every active expert
        True
    """
    scope, mode, rows = _scope(scope), mode_of(mode), _rows(model, layers)
    instrument = _ready(model, text, mode, scope, means_of=text)
    return _measured(model, instrument, text, rows, Removals(scope, tuple(experts) or None))


def audit(
    model: Model,
    scores: Scores | Sequence[Scores],
    text: Windows,
    *,
    positions: int | Literal["all"] = 200,
    scope: Literal["position", "sequence"] = "position",
    mode: Mode | str = Mode.ZERO,
    layers: Sequence[int] = (),
    seed: int = 0,
    ddof: Literal[0, 1] = 1,
    means_of: Windows | None = None,
) -> TokenAudit:
    """Ask, token by token, whether criteria rank the active experts by what removing them costs.

    At every position the highest- and the lowest-ranked active expert are removed, and their costs compared;
    two controls rank by gate weight and at random. A cell passes by the rule of docs/audit.md.

    Args:
        model: a loaded model
        scores: of `criteria.score`, one criterion's or several
        text: held-out windows
        positions: per layer, or all
        scope: removed at the position alone, or in its window
        mode: what removal means: zero, renormalize, reroute, mean
        layers: decoder layers; none = all with experts
        seed: of the positions and of the ties
        ddof: taken off n in the standard deviation of Cohen's d
        means_of: windows whose mean expert outputs mode mean uses; by default `text`

    Returns:
        Cells with their verdicts, and all raw rows.

    Raises:
        ExciseError: there are fewer positions than asked for, or removals cannot be measured on this model.

    Example:
        >>> import criteria, experts, validate
        >>> model = experts.load("demo")
        >>> text = criteria.windows(model, stdlib="code", split="calibration", sequences=4, length=64)
        >>> held_out = criteria.windows(model, stdlib="code", split="test", sequences=4, length=64)
        >>> scores = criteria.score(model, "reap", text)
        >>> result = validate.audit(model, scores, held_out, positions=20, layers=[0])
        >>> [cell.criterion for cell in result.cells]
        ['reap', 'control:gate_weight', 'control:random_pair']
    """
    table = [scores] if isinstance(scores, Scores) else list(scores)
    rows, mode, where = _rows(model, layers), mode_of(mode), _scope(scope)
    chosen = sample_positions(text, model.shape.num_layers, rows, positions, seed)
    instrument = _ready(model, text, mode, where, means_of=means_of or text)
    effects = _measured(model, instrument, text, rows, Removals(where, positions=chosen))
    effects = effects.rename(columns={"document": "window"})
    effects["document"] = text.document[effects["window"]]
    pairs = pick_pairs(effects, table, seed)
    pairs["text"] = pairs.groupby("document", sort=False).ngroup()
    cells = audit_cells(pairs, Outcome.DELTA, ddof, rank_correlations(effects, table))
    return TokenAudit(tuple(cells), pairs, effects)


def _ready(model: Model, text: Windows, mode: Mode, scope: Scope, means_of: Windows) -> Instrument:
    """The checked instrument for these removals."""
    anatomy = model.anatomy
    check_rig(anatomy, text, rig_plan(model.shape))
    means = mean_outputs(anatomy, means_of.tensor(model.device)) if mode is Mode.MEAN else None
    return Instrument.ready(anatomy, mode, scope, text.tensor(model.device), means=means)


def _measured(
    model: Model, instrument: Instrument, text: Windows, rows: Sequence[int], removals: Removals
) -> pd.DataFrame:
    tables: dict[tuple[int, int], pd.DataFrame] = {}

    def keep(window: int, row: int, table: Table) -> None:
        if not np.isfinite(table["delta"]).all():
            dtype = model.network.dtype
            raise ExciseError(
                f"window {window}: an effect is not finite; is the model sound in {dtype}? Try float32"
            )
        tables[window, row] = pd.DataFrame(table)

    missing = dict.fromkeys(range(len(text)), tuple(rows))
    measure_effects(instrument, text.tensor(model.device), missing, removals, keep)
    return pd.concat([tables[key] for key in sorted(tables)], ignore_index=True)


def _rows(model: Model, layers: Sequence[int]) -> tuple[int, ...]:
    """Places of decoder layers among the L MoE layers, ascending."""
    known = model.shape.layers
    for layer in layers:
        if layer not in known:
            raise ExciseError(f"layer {layer} is dense or absent; the layers with experts are {list(known)}")
    return tuple(sorted({known.index(layer) for layer in layers or known}))


def _scope(scope: Scope | str) -> Scope:
    try:
        return Scope(scope)
    except ValueError:
        raise ExciseError(f"scope {scope!r}: expected one of {', '.join(Scope)}") from None
