"""A sweep between two parts as tensors, numbers and names, and back."""

from typing import Any

import torch

from experts.sweep.branch import Branch
from experts.sweep.stage import State
from experts.sweep.streams import Key
from experts.sweep.visits import BRANCH, WHOLE, Living, Visits

Content = dict[str, Any]


def packed(visits: Visits, number: int | None) -> Content:
    """A sweep that is about to visit a part.

    Args:
        visits: the sweep
        number: of the part; None = the sweep has finished
    """
    if number is None:
        return {"number": None, "job": _job(visits)}
    births = visits.births
    return {
        "number": number,
        "births": (births.first, births.full, births.next, births.count, births.admitted),
        "handed_up": visits.runner.stage.handed_up,
        "alive": [[living.key for living in alive] for alive in visits.alive],
        "states": visits.streams.in_memory(),
        "files": visits.streams.in_files(),
        "routing": [_routing(visits, batch) for batch in range(visits.job.batches)],
        "progress": visits.progress.state(),
        "job": _job(visits),
    }


def files_of(visits: Visits) -> list[str]:
    """The files that a record of the sweep needs beside its own."""
    return [name for name, *_ in visits.streams.in_files().values()]


def unpack(visits: Visits, content: Content) -> int | None:
    """Go on with a sweep that has not visited anything yet.

    Returns:
        The number of the part that is next; None = the sweep had finished.
    """
    visits.job.restore({name: tensor.numpy().copy() for name, tensor in content["job"].items()})
    if content["number"] is None:
        return None
    births = visits.births
    births.first, births.full, births.next, births.count, births.admitted = content["births"]
    visits.runner.stage.handed_up.update(content["handed_up"])
    states = {key: _loaded(state) for key, state in content["states"].items()}
    visits.streams.restore(states, content["files"])
    visits.progress.restore(*content["progress"])
    for batch, keys in enumerate(content["alive"]):
        if visits.job.is_wanted(batch):
            _restore_routing(visits, batch, content["routing"][batch])
            visits.alive[batch] = _living(visits, batch, keys)
        _drop_others(visits, batch, keys)
    number: int = content["number"]
    return number


def _job(visits: Visits) -> Content:
    """What the job has so far, as tensors: a record holds those."""
    return {name: torch.from_numpy(array) for name, array in visits.job.state().items()}


def _rows(visits: Visits, batch: int, keys: list[Key]) -> set[int]:
    """The MoE layers in which branches were born whose results are not complete."""
    rows = {int(key[2]) for key in keys}
    _, next_batch, next_row = visits.births.next
    if next_batch == batch and visits.births.count:
        rows.add(next_row)
    return rows - {WHOLE}


def _routing(visits: Visits, batch: int) -> Content:
    """What of the clean forward the branches of a batch follow from, by MoE layer, and its losses.

    Where the clean forward ends before the experts no branch follows from how it routes.
    """
    clean = visits.forwards[batch]
    if clean is None:
        return {}
    rows = _rows(visits, batch, [living.key for living in visits.alive[batch]])
    chosen = {row: (clean.index[row].cpu(), clean.weight[row].cpu()) for row in rows & clean.index.keys()}
    return {"rows": chosen, "losses": clean.losses.cpu()}


def _restore_routing(visits: Visits, batch: int, routing: Content) -> None:
    if not routing:
        return
    clean = visits.forward(batch)
    clean.losses = routing["losses"].clone().to(clean.tokens.device)
    for row, (index, weight) in routing["rows"].items():
        device = visits.anatomy.device_of(row)
        clean.index[row], clean.weight[row] = index.clone().to(device), weight.clone().to(device)


def _living(visits: Visits, batch: int, keys: list[Key]) -> list[Living]:
    """The branches of a batch that wait. Those that the job does not want any more are left out."""
    clean = visits.forward(batch)
    born: dict[Key, Branch] = {}
    for row in sorted(_rows(visits, batch, keys)):
        for number, branch in visits.births.restore(batch, row, clean).items():
            born[BRANCH, batch, row, number] = branch
    if any(key[2] == WHOLE for key in keys):
        for number, branch in enumerate(visits.job.whole(batch)):
            born[BRANCH, batch, WHOLE, number] = branch
    found = [(key, _found(born, key)) for key in keys]
    return [Living(key, branch) for key, branch in found if branch is not None]


def _found(born: dict[Key, Branch], key: Key) -> Branch | None:
    """The branch of a key, or the half of a branch; both halves are made together."""
    if key in born or len(key) <= 4:
        return born.get(key)
    whole = _found(born, key[:-1])
    halves = None if whole is None else whole.halves()
    for which, half in enumerate(halves or ()):
        born[*key[:-1], which] = half
    return born.get(key)


def _drop_others(visits: Visits, batch: int, keys: list[Key]) -> None:
    """Forget the states of branches that are not wanted any more."""
    wanted = {living.key for living in visits.alive[batch]}
    for key in keys:
        if key not in wanted:
            visits.streams.drop(key)


def _loaded(state: State) -> State:
    """A state that does not hold on to the file of the record."""
    return {name: value.clone() for name, value in state.items()}
