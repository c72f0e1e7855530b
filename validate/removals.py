"""What removals cost, and whether a criterion ranks experts by it: what users call."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from criteria.scores import Scores
from criteria.text.disjoint import check_unseen
from criteria.text.windows import Windows, check_held_out, check_windows
from experts.arguments import check_choice, check_count, check_kind, choice_of
from experts.errors import ExciseError
from experts.interventions import mode_of
from experts.model import Model, check_model
from experts.modes import Mode, Scope
from validate.active_experts import Removals, Table
from validate.audit_cells import Cell
from validate.expert_pairs import pick_pairs, rank_correlations
from validate.measured_removals import by_document, measure_removals
from validate.position_sample import sample_positions
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
    check_model(model)
    check_windows("text", text)
    scope, mode, rows = choice_of("scope", scope, Scope), mode_of(mode), _rows(model, layers)
    removals = Removals(scope, _experts(model, experts))
    return _measured(model, text, rows, removals, mode=mode, means_of=text, title="effects")


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
        text: held-out windows; none that the scores were made from
        positions: per layer, or all
        scope: removed at the position alone, or in its window
        mode: what removal means: zero, renormalize, reroute, mean
        layers: decoder layers; none = all with experts
        seed: of the positions and of the ties
        ddof: taken off n in the standard deviation of Cohen's d
        means_of: windows whose mean expert outputs mode mean uses; by default the calibration text of the
            scores

    Returns:
        Cells with their verdicts, and all raw rows.

    Raises:
        ExciseError: the scores have seen the text, there are fewer positions than asked for, or removals
            cannot be measured on this model.

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
    check_model(model)
    check_held_out("text", text)
    table, mode = _scores(scores, text), mode_of(mode)
    check_choice("scope", scope, ("position", "sequence"))
    rows = _rows(model, layers)
    means = _means_of(table, means_of) if mode is Mode.MEAN else None
    if positions != "all":
        check_count("positions", positions)
    check_count("seed", seed, 0)
    check_choice("ddof", ddof, (0, 1))
    chosen = sample_positions(text, model.shape.num_layers, rows, positions, seed)
    removals = Removals(Scope(scope), positions=chosen)
    measured = _measured(model, text, rows, removals, mode=mode, means_of=means, title="audit")
    effects = by_document(measured, text)
    pairs = pick_pairs(effects, table, seed)
    pairs["text"] = pairs.groupby("document", sort=False).ngroup()
    cells = audit_cells(pairs, Outcome.DELTA, ddof, rank_correlations(effects, table))
    return TokenAudit(tuple(cells), pairs, effects)


def _measured(
    model: Model,
    text: Windows,
    rows: Sequence[int],
    removals: Removals,
    *,
    mode: Mode,
    means_of: Windows | None,
    title: str,
) -> pd.DataFrame:
    """The whole table, window by window and layer by layer."""
    tables: dict[tuple[int, int], pd.DataFrame] = {}

    def keep(window: int, row: int, table: Table) -> None:
        tables[window, row] = pd.DataFrame(table)

    missing = dict.fromkeys(range(len(text)), tuple(rows))
    measure_removals(model, text, missing, removals, mode=mode, means_of=means_of, keep=keep, title=title)
    return pd.concat([tables[key] for key in sorted(tables)], ignore_index=True)


def _scores(scores: Scores | Sequence[Scores], text: Windows) -> list[Scores]:
    """The scores of every criterion; refused where one of them has seen the text."""
    expected = "scores of criteria.score, or a list of them"
    several = [scores] if isinstance(scores, Scores) else scores
    check_kind("scores", several, Collection, expected)
    for ranking in several:
        check_kind("scores", ranking, Scores, expected)
        if ranking.text is not None:
            check_unseen(ranking.text.tokens, text, "calibration", "for the audit")
    return list(several)


def _means_of(table: list[Scores], means_of: Windows | None) -> Windows:
    """The windows whose mean outputs are used: those of the scores, as in `excise audit`."""
    if means_of is not None:
        check_windows("means_of", means_of)
        return means_of
    texts = {ranking.text.hash: ranking.text for ranking in table if ranking.text is not None}
    if len(texts) != 1:
        raise ExciseError(
            "mode mean needs means_of: the windows whose mean expert outputs are used; "
            "these scores do not know one calibration text"
        )
    return next(iter(texts.values()))


def _experts(model: Model, experts: Sequence[int]) -> tuple[int, ...] | None:
    """Expert ids; None = all."""
    for expert in experts:
        if expert not in range(model.shape.num_experts):
            last = model.shape.num_experts - 1
            raise ExciseError(f"experts: {expert} is out of range; a layer has experts 0 to {last}")
    return tuple(experts) or None


def _rows(model: Model, layers: Sequence[int]) -> tuple[int, ...]:
    """Places of decoder layers among the L MoE layers, ascending."""
    known = model.shape.layers
    for layer in layers:
        if layer not in known:
            raise ExciseError(f"layer {layer} is dense or absent; the layers with experts are {list(known)}")
    return tuple(sorted({known.index(layer) for layer in layers or known}))
