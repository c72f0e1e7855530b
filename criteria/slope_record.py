"""Two sweeps for slopes, up and down: where their states wait, how far they are, and what a record holds."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from tqdm import tqdm

from experts.anatomy import Anatomy
from experts.sweep.journal import Journal
from experts.sweep.record import CleanForward
from experts.sweep.stage import Stage, State
from experts.sweep.storage import storage
from experts.sweep.streams import Streams


@dataclass(frozen=True)
class SlopeWork:
    """What slopes are measured for.

    Attributes:
        title: beside the progress bar
        identity: what decides the results besides model and windows
        results: sums that the slopes are added to
        keep_result: a criterion of many sweeps that is interrupted goes through its finished ones at once
    """

    title: str
    identity: str
    results: Sequence[Tensor]
    keep_result: bool = True


@dataclass
class Way:
    """How far two sweeps are.

    Attributes:
        streams: what enters the parts
        stage: knows what layers hand upward
        work: what it is for
        journal: takes records; None = none are made
        bar: a step for every part and batch, in both directions
        place: parts that are done
        slopes: batch -> for every total, slopes in what leaves the part that is next on the way down
    """

    streams: Streams
    stage: Stage
    work: SlopeWork
    journal: Journal | None
    bar: "tqdm[Any]"
    place: int = 0
    slopes: dict[int, list[State]] = field(default_factory=dict)

    def done(self, batches: int, *, last: bool) -> None:
        """A part is done.

        Args:
            batches: that went through it
            last: whether nothing is left
        """
        self.place += 1
        self.bar.update(batches)
        if self.journal is not None and (last or self.journal.is_due()):
            files = [] if last else [name for name, *_ in self.streams.in_files().values()]
            self.journal.write(self._packed(), files)

    def resume(self) -> None:
        """Go on from a record, if there is one."""
        content = None if self.journal is None else self.journal.read()
        if content is None:
            return
        states = {key: _loaded(state) for key, state in content["states"].items()}
        self.streams.restore(states, content["files"])
        self.stage.handed_up.update(content["handed_up"])
        self.slopes = {batch: [_loaded(state) for state in of] for batch, of in content["slopes"].items()}
        for result, known in zip(self.work.results, content["results"], strict=True):
            result.copy_(known)
        self.place = content["place"]
        self.bar.update(content["steps"])

    def _packed(self) -> dict[str, Any]:
        return {
            "place": self.place,
            "steps": self.bar.n,
            "states": self.streams.in_memory(),
            "files": self.streams.in_files(),
            "handed_up": self.stage.handed_up,
            "slopes": {
                batch: [_on_cpu(state) for state in of_batch] for batch, of_batch in self.slopes.items()
            },
            "results": [result.cpu() for result in self.work.results],
        }


@contextmanager
def way(
    anatomy: Anatomy, stage: Stage, batches: Sequence[Tensor], work: SlopeWork, steps: int
) -> Iterator[Way]:
    """Where states wait on the way up and down, with a progress bar where layers are read one by one.

    Args:
        anatomy: the model
        stage: runs its parts
        batches: windows [B, W] of every forward
        work: what it is for
        steps: of the progress bar
    """
    if not anatomy.weights.streamed:
        with tqdm(disable=True) as bar:
            yield Way(Streams(device=anatomy.device), stage, work, None, bar)
        return
    forwards = [CleanForward.of(batch) for batch in batches]
    with storage(anatomy, work, forwards, anatomy.room) as where:
        streams = Streams(anatomy.room.memory, where.spill, anatomy.device)
        with tqdm(total=steps, desc=work.title, unit="layer·batch", smoothing=0, delay=2) as bar:
            found = Way(streams, stage, work, where.journal, bar)
            found.resume()
            yield found


def _loaded(state: State) -> State:
    """A state that does not hold on to the file of the record."""
    return {name: value.clone() for name, value in state.items()}


def _on_cpu(state: State) -> State:
    return {name: value.cpu() for name, value in state.items() if value is not None}
