"""The set P of experts to remove that costs least, where the cost is a sum over pairs: pᵀFp, p = 1 on P.

Greedy, then swaps of a removed and a kept expert until none helps. The swaps also start from the set with the
lowest row sums of F (the slope of the relaxed problem, all p alike) and, where there are few experts, from
random sets; the best end is taken. Chains of swaps leave the small valleys in which single
ones end. No swap that the budget allows makes the result better; that no other set does is not proven.
"""

from dataclasses import dataclass

import numpy as np

from criteria.removal_room import Place, Room
from experts.arrays import Array, Ids, Marks

DRAWS, SMALL, SEED = 8, 512, 20061117  # random sets to start from, up to so many experts
CHAIN = 16  # swaps of a chain
ROUNDING = 1e-12  # of the largest entry: a swap has to gain more


@dataclass(frozen=True)
class FoundSet:
    """What a search found.

    Attributes:
        score: place of every expert in the order of removal [L, E]; those that are kept come last
        greedy: pᵀFp of the greedy set
        swapped: pᵀFp of the set that is removed
        swaps: how many swaps were made
    """

    score: Array
    greedy: float
    swapped: float
    swaps: int


def cheapest_set(pairs: Array, room: Room, name: str) -> FoundSet:
    """Search for the removed set P that minimises pᵀFp.

    Args:
        pairs: F, symmetric [L·E, L·E]
        room: what may be removed
        name: of the criterion, for messages

    Raises:
        ExciseError: the budget and protected experts leave too few that may go.
    """
    draw = np.random.default_rng(SEED)
    more = [np.diag(draw.random(len(pairs))) for _ in range(DRAWS if len(pairs) <= SMALL else 0)]
    ends = []
    for guide in (pairs, np.diag(pairs.sum(axis=1)), *more):
        removed = _greedy(_State(guide, room), name)
        before = _State(pairs, room, removed)
        start = before.cost
        ends.append((_improved(before), start, before))
    lowest = min(end[2].cost for end in ends) + ROUNDING * float(np.abs(pairs).sum())
    swaps, _, best = next(end for end in ends if end[2].cost <= lowest)  # the first of equals
    return FoundSet(_order(pairs, best.removed, room), ends[0][1], best.cost, swaps)


class _State:
    """A removed set, and what one more or one less would cost.

    Attributes:
        removed: the set P [L·E]
        pull: Fp [L·E]
    """

    def __init__(self, pairs: Array, room: Room, removed: Marks | None = None) -> None:
        self.pairs, self.room, self.own = pairs, room, np.diag(pairs).copy()
        self.removed = np.zeros(len(pairs), dtype=bool) if removed is None else removed.copy()
        self.pull: Array = pairs[:, self.removed].sum(axis=1)

    @property
    def cost(self) -> float:
        """pᵀFp."""
        return float(self.pull[self.removed].sum())

    def take(self, experts: Ids, sign: int = 1) -> None:
        """Remove experts; bring them back where the sign is −1."""
        self.removed[experts] = sign > 0
        self.pull += sign * self.pairs[:, experts].sum(axis=1)

    def unit(self, place: Place, size: int, sign: int = 1) -> tuple[Ids, float] | None:
        """The experts of a place that go (or come back) at least cost, `size` of every cell, and that cost.

        Of equals the higher id goes, and the lower one comes back. None = too few are left.
        """
        chosen: list[int] = []
        price = 0.0
        for cell in place.cells:
            left = cell[(self.removed[cell] == (sign < 0)) & self.room.free[cell]]
            if len(left) < size:
                return None
            for _ in range(size):
                inside = sign * self.pairs[np.ix_(left, chosen)].sum(axis=1) if chosen else 0.0
                cost = self.own[left] + sign * 2 * (self.pull[left] + inside)
                at = int(np.flatnonzero(cost == cost.min())[-1 if sign > 0 else 0])
                price += float(cost[at])
                chosen.append(int(left[at]))
                left = np.delete(left, at)
        return np.array(chosen), price


def _greedy(state: _State, name: str) -> Marks:
    """Remove units, the one that adds least first."""
    room, count = state.room, 0
    if room.first:
        for place in room.places:
            if (rest := state.unit(place, room.first)) is None:
                raise room.full(name, room.first)
            state.take(rest[0])
    taken = [0] * len(room.places)
    offers = [state.unit(place, place.size) for place in room.places]
    while count < room.units:
        costs = [
            np.inf if offer is None or taken[number] >= place.most else offer[1]
            for number, (place, offer) in enumerate(zip(room.places, offers, strict=True))
        ]
        # Of equals the later place gives: its ids are higher.
        number = len(costs) - 1 - int(np.argmin(costs[::-1]))
        offer = offers[number]
        if offer is None or np.isinf(costs[number]):
            raise room.full(name, room.units - count)
        state.take(offer[0])
        taken[number] += 1
        count += 1
        near: Marks = np.any(state.pairs[:, offer[0]], axis=1)
        for other, place in enumerate(room.places):
            if other == number or any(near[cell].any() for cell in place.cells):
                offers[other] = state.unit(place, place.size)
    return state.removed


def _improved(state: _State) -> int:
    """Swap while something is gained, the best swap first; returns how often.

    Where no swap gains, chains of them may: the best ones are made, each expert moved once, and the chain is
    kept up to where it gained most (Kernighan and Lin, 1970).
    """
    least = ROUNDING * float(np.abs(state.pairs).max(initial=0.0))
    swaps = 0
    while True:
        back, away, gain = _best_swap(state)
        if state.room.unit > 1:
            back, away, gain = max((back, away, gain), _best_transfer(state), key=lambda swap: swap[2])
        if gain > least:
            _swap(state, back, away)
            swaps += 1
        elif made := _chain(state, least):
            swaps += made
        else:
            return swaps


def _swap(state: _State, back: Ids, away: Ids) -> None:
    state.take(back, -1)
    state.take(away)


def _chain(state: _State, least: float) -> int:
    """Make a chain of swaps that gains as a whole; returns its length, 0 where there is none."""
    made: list[tuple[Ids, Ids]] = []
    gained, best, length = 0.0, least, 0
    locked = np.zeros(len(state.removed), dtype=bool)
    while len(made) < CHAIN:
        back, away, gain = _best_swap(state, locked)
        if not len(back) or np.isinf(gain):
            break
        _swap(state, back, away)
        made.append((back, away))
        locked[back] = locked[away] = True
        gained += gain
        if gained > best:
            best, length = gained, len(made)
    for back, away in reversed(made[length:]):
        _swap(state, away, back)
    return length


def _best_swap(state: _State, locked: Marks | None = None) -> tuple[Ids, Ids, float]:
    """A removed expert that comes back, a kept one that goes for it, and what that gains; none is locked."""
    room = state.room
    free = room.free if locked is None else room.free & ~locked
    out, kept = np.flatnonzero(state.removed & free), np.flatnonzero(~state.removed & free)
    nothing = np.array([], dtype=np.int64)
    if not len(out) or not len(kept):
        return nothing, nothing, 0.0
    saved, added = 2 * state.pull[out] - state.own[out], state.own[kept] + 2 * state.pull[kept]
    gain = saved[:, None] - added + 2 * state.pairs[np.ix_(out, kept)]
    allowed = room.cell[out][:, None] == room.cell[kept]
    if room.moves and room.unit == 1:
        allowed |= _can_lose(state)[kept // room.shape.num_experts]
    gain[~allowed] = -np.inf
    row, column = np.unravel_index(int(np.argmax(gain)), gain.shape)
    return out[[row]], kept[[column]], float(gain[row, column])


def _can_lose(state: _State) -> Marks:
    """Whether every layer is above its floor [L]."""
    removed = state.removed.reshape(state.room.shape.num_layers, -1).sum(axis=1)
    most = np.array([place.most for place in state.room.places])
    above: Marks = removed < most
    return above


def _best_transfer(state: _State) -> tuple[Ids, Ids, float]:
    """Likewise for whole units of two layers, where counts move in units only."""
    room = state.room
    best: tuple[Ids, Ids, float] = (np.array([], dtype=np.int64), np.array([], dtype=np.int64), 0.0)
    removed = state.removed.reshape(room.shape.num_layers, -1).sum(axis=1)
    units = (removed - room.first * room.shape.groups) // room.unit
    for number, giver in enumerate(room.places):
        back = state.unit(giver, giver.size, -1) if units[number] else None
        if back is None:
            continue
        state.take(back[0], -1)
        for other, taker in enumerate(room.places):
            away = state.unit(taker, taker.size) if other != number and units[other] < taker.most else None
            if away is not None and -back[1] - away[1] > best[2]:
                best = (back[0], away[0], -back[1] - away[1])
        state.take(back[0])
    return best


def _order(pairs: Array, removed: Marks, room: Room) -> Array:
    """Place of every expert in the order of removal [L, E]: the removed ones first, the cheapest next."""
    score, pull, own = np.empty(len(pairs)), np.zeros(len(pairs)), np.diag(pairs)
    left = np.ones(len(pairs), dtype=bool)
    for place in range(len(pairs)):
        among = np.flatnonzero(left & removed) if (left & removed).any() else np.flatnonzero(left)
        cost = own[among] + 2 * pull[among]
        expert = among[np.flatnonzero(cost == cost.min())[-1]]
        score[expert], left[expert] = place, False
        pull += pairs[:, expert]
    return score.reshape(room.shape.num_layers, room.shape.num_experts)
