"""Small jobs for sweeps: what they measure on a model, as arrays."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from criteria.observe import observe
from criteria.removal_costs import RemovalCosts
from criteria.text.windows import Windows
from experts.ablation import marked
from experts.anatomy import Anatomy
from experts.arrays import Array
from experts.effects.instrument import Instrument
from experts.effects.measurement import measure
from experts.effects.removal import Removal, Take
from experts.modes import Mode, Scope
from experts.plan import Plan
from experts.sweep.record import CleanForward
from tests.support import tiny
from validate.active_experts import Removals, Table
from validate.effect_table import measure_effects
from validate.plan_losses import plan_losses

LENGTH = 16
Work = Callable[[Anatomy], Array]


def windows(count: int = 3, length: int = LENGTH, padded: bool = False) -> Windows:
    """Random tokens; the last window ends with padding if asked for."""
    tokens = np.random.default_rng(1).integers(0, 250, (count, length))
    mask = np.ones((count, length), bool)
    if padded:
        mask[-1, length - 5 :] = False
    names = tuple(str(number) for number in range(count))
    return Windows(tokens, mask, np.arange(count), np.zeros(count, int), names, ("text",))


def random_plans(anatomy: Anatomy, count: int = 3) -> list[Plan]:
    """Plans that keep about three quarters of the experts, as routers with groups allow."""
    shape, rng = anatomy.shape, np.random.default_rng(0)
    kept = max(shape.even_below(shape.num_experts * 3 // 4), shape.smallest)
    per_group = kept // shape.groups

    def draw() -> tuple[int, ...]:
        chosen = [rng.choice(shape.group_size, per_group, replace=False) for _ in range(shape.groups)]
        ids = [group * shape.group_size + int(x) for group, of_group in enumerate(chosen) for x in of_group]
        return tuple(sorted(ids))

    return [Plan(shape.num_experts, {layer: draw() for layer in shape.layers}) for _ in range(count)]


def losses(anatomy: Anatomy, padded: bool = False) -> Array:
    """Of the unpruned model and three plans [4, 3]."""
    return plan_losses(anatomy, windows(padded=padded), [None, *random_plans(anatomy)], batch=2)


def losses_of_plans(anatomy: Anatomy) -> Array:
    """Of three plans alone [3, 3]: the clean forward ends before the first experts."""
    return plan_losses(anatomy, windows(), random_plans(anatomy), batch=2)


def statistics(anatomy: Anatomy, padded: bool = False) -> Array:
    """All statistics one after the other."""
    found = observe(anatomy, windows(padded=padded), batch=2)
    names = ("moments", "peak", "turning", "together", "by_domain", "weight_l2", "router_norm")
    return np.concatenate([getattr(found, name).reshape(-1) for name in names])


def leave_one_out(anatomy: Anatomy, mode: Mode = Mode.ZERO) -> Array:
    """ΔCE and KL of every removal from every token [N, L, E, 2], two windows a batch."""
    batches = torch.split(tiny.ids(3, LENGTH), 2)
    shape = (3, len(anatomy.layers), anatomy.shape.num_experts, 2)
    effects = np.full(shape, np.nan)

    def removals(batch: int, row: int, _: CleanForward) -> Iterator[Removal]:
        for expert in range(anatomy.shape.num_experts):
            place = effects[2 * batch : 2 * batch + 2, row, expert]
            yield Removal(row, {row: marked(anatomy, expert)}, _means(place))

    measure(
        Instrument(anatomy, mode),
        batches,
        Scope.CORPUS,
        removals,
        results={"effects": effects},
        most=lambda batch, row: anatomy.shape.num_experts,
    )
    return effects


def _means(place: Array) -> Take:
    def take(delta: Tensor, divergence: Tensor) -> None:
        place[:] = torch.stack([delta.mean(1), divergence.mean(1)], 1).numpy()

    return take


def at_positions(anatomy: Anatomy) -> Array:
    """Effects at single positions, summed by expert [N, L, E]; seven copies in a forward."""
    sums = np.full((3, len(anatomy.layers), anatomy.shape.num_experts), np.nan)

    def removals(batch: int, row: int, clean: CleanForward) -> Iterator[Removal]:
        index = clean.index[row][0, :-1]
        position = torch.arange(len(index)).repeat_interleave(index.shape[1])
        expert = index.reshape(-1)

        def take(delta: Tensor, _: Tensor) -> None:
            found = torch.zeros(anatomy.shape.num_experts, dtype=torch.float64)
            sums[batch, row] = found.index_add_(0, expert, delta).numpy()

        yield Removal(row, {row: one_hot(expert, anatomy.shape.num_experts).bool()}, take, position)

    instrument = Instrument(anatomy, probabilities=False, at_once=7)
    windows = torch.split(tiny.ids(3, LENGTH), 1)
    measure(instrument, windows, Scope.POSITION, removals, results={"sums": sums})
    return sums


def greedy_round(anatomy: Anatomy) -> Array:
    """What every removal adds to the KL of an earlier one [L, E]."""
    return _removal_costs(anatomy).of(~_gone(anatomy), _gone(anatomy))


def _removal_costs(anatomy: Anatomy) -> RemovalCosts:
    costs = RemovalCosts.__new__(RemovalCosts)  # without the check of its instrument, which runs sweeps
    costs.anatomy, costs.batch, costs.tokens, costs.divergence = anatomy, 1, tiny.ids(3, LENGTH), True
    costs.instrument = Instrument(anatomy, Mode.REROUTE)
    return costs


def _gone(anatomy: Anatomy) -> np.ndarray:
    gone = np.zeros((len(anatomy.layers), anatomy.shape.num_experts), bool)
    gone[0, 1] = True
    return gone


def table(anatomy: Anatomy, scope: Scope = Scope.SEQUENCE) -> Array:
    """Every number of a table of effects, window by window and layer by layer."""
    tokens, pieces = tiny.ids(3, LENGTH), dict[tuple[int, int], Table]()
    rows = range(len(anatomy.layers))

    def keep(window: int, row: int, piece: Table) -> None:
        assert (window, row) not in pieces
        pieces[window, row] = piece

    missing = {window: list(rows) for window in range(3)}
    measure_effects(Instrument(anatomy, at_once=7), tokens, missing, Removals(scope), keep)
    ordered = [pieces[window, row] for window in range(3) for row in rows]
    return np.concatenate([np.stack([piece[name] for name in sorted(piece)]) for piece in ordered], axis=1)


JOBS: dict[str, Work] = {
    "losses": losses,
    "losses of plans": losses_of_plans,
    "padded losses": lambda anatomy: losses(anatomy, padded=True),
    "statistics": statistics,
    "leave one out": leave_one_out,
    "positions": at_positions,
    "greedy round": greedy_round,
    "table": table,
    "table of positions": lambda anatomy: table(anatomy, Scope.POSITION),
}
