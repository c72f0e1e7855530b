"""What a run costs on models that do not fit: a model of bytes and floating-point operations, on paper.

    python -m benchmarks.costs

The tables of docs/scale.md. Assumptions are the constants below; of these the CPU seconds of loading were
measured (docs/benchmarks.md). Every process reads and converts all files by itself, on one thread: plans are
dealt to processes, files are not, and processes of a machine share its disk. On a CPU loading and computing
take turns, on a GPU the next layer is read ahead.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from experts.memory_rule import room_for, streamed_bytes
from prune.forecast.loading import FP8, PLAIN

DISK = 3e9  # bytes per second, read in order; of a machine
MAIN, CARD = 512 * 10**9, 80 * 10**9  # bytes of memory: of a machine, of a GPU
LOADING = {2: PLAIN, 1: FP8}  # bytes of a weight on disk -> CPU seconds per GB of file
CALIBRATION, HELD_OUT, PLANS = 128 * 512, 64 * 512, 23  # tokens, tokens, plans: the recipes for large models
SWEEPS = 4.5  # reads of the files: calibration, checks, plans, proof; and half of them, reloaded
ONCE = 1.5  # reads of the files where the weights stay in memory


@dataclass(frozen=True)
class Machine:
    """What a run is computed on.

    Attributes:
        cards: GPUs of each machine; 0 = it works on its cores
        machines: of this kind
    """

    cards: int
    machines: int = 1

    @property
    def speed(self) -> float:
        """Operations per second of a process."""
        return 250e12 if self.cards else 5e12


MACHINES = {
    "64 cores": Machine(0),
    "1 × H100": Machine(1),
    "8 × H100": Machine(8),
    "4 × 8 H100": Machine(8, 4),
}


@dataclass(frozen=True)
class Shape:
    """A model on paper.

    Attributes:
        hidden: H
        layers: decoder layers
        dense: of these, without experts
        experts: E, of every other layer
        active: k
        inner: width of an expert
        shared: width of the shared experts together
        dense_inner: width of the others' feed-forward
        attention: parameters of a layer's attention
        vocabulary: V
        stored: bytes of a weight on disk
    """

    hidden: int
    layers: int
    dense: int
    experts: int
    active: int
    inner: int
    shared: int
    dense_inner: int
    attention: int
    vocabulary: int
    stored: float

    @property
    def layer(self) -> int:
        """Parameters of a layer with experts."""
        return 3 * self.hidden * (self.experts * self.inner + self.shared) + self.attention

    @property
    def outside(self) -> int:
        """Parameters of embeddings and head."""
        return 2 * self.vocabulary * self.hidden

    @property
    def total(self) -> int:
        """All parameters."""
        dense = self.dense * (3 * self.hidden * self.dense_inner + self.attention)
        return self.outside + dense + (self.layers - self.dense) * self.layer

    @property
    def used(self) -> int:
        """Parameters that a token uses."""
        active = 3 * self.hidden * (self.active * self.inner + self.shared) + self.attention
        dense = self.dense * (3 * self.hidden * self.dense_inner + self.attention)
        return self.vocabulary * self.hidden + dense + (self.layers - self.dense) * active


MODELS = {
    "OLMoE-1B-7B": Shape(2048, 16, 0, 64, 8, 1024, 0, 0, 4 * 2048**2, 50304, 2),
    "Qwen3-30B-A3B": Shape(2048, 48, 0, 128, 8, 768, 0, 0, 2048 * 128 * 72, 151936, 2),
    "GLM-4.5-Air": Shape(4096, 46, 1, 128, 8, 1408, 1408, 10944, 4096 * 128 * 208, 151552, 2),
    "DeepSeek-V3": Shape(7168, 61, 3, 256, 8, 2048, 2048, 18432, 187_107_328, 129280, 1),
    "1 T (Kimi-K2's shape)": Shape(7168, 61, 1, 384, 8, 2048, 2048, 18432, 101_124_096, 163840, 1),
}


def main() -> None:
    """Print both tables as Markdown."""
    print("| model | files | a layer | outside the layers | memory, streamed | states waiting |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, shape in MODELS.items():
        layer, outside = 2 * shape.layer, 2 * shape.outside
        states = (CALIBRATION + PLANS * HELD_OUT) * shape.hidden * 2
        sizes = (shape.total * shape.stored, layer, outside, streamed_bytes(outside, layer), states)
        print(f"| {name} | {' | '.join(map(gigabytes, sizes))} |")
    print(f"\n| model | {' | '.join(MACHINES)} |")
    print(f"| --- |{' --- |' * len(MACHINES)}")
    for name, shape in MODELS.items():
        print(f"| {name} | {' | '.join(fastest(shape, machine) for machine in MACHINES.values())} |")


def fastest(shape: Shape, machine: Machine) -> str:
    """The shortest time, and how it is reached."""
    ways = sorted(_ways(shape, machine))
    if not ways:
        return "too large"
    seconds, how = ways[0]
    return f"{duration(seconds)}, {how}"


def _ways(shape: Shape, machine: Machine) -> Iterator[tuple[float, str]]:
    """Seconds of the run in every way that its memory allows."""
    whole, at_a_time = 2 * shape.total, streamed_bytes(2 * shape.outside, 2 * shape.layer)
    room = room_for(CARD if machine.cards else MAIN)
    for processes in {1, max(1, machine.cards)}:  # of a machine: more of them share its disk
        if whole <= room:
            yield _seconds(shape, machine, processes, streamed=False), "resident"
        if at_a_time <= room:
            yield _seconds(shape, machine, processes, streamed=True), "streamed"
    if machine.cards > 1 and room < whole <= machine.cards * room:
        yield _seconds(shape, Machine(machine.cards), 1, streamed=False), "resident on 8"
    if machine.cards and at_a_time > room:
        yield from ((seconds, f"{how} on its cores") for seconds, how in _ways(shape, Machine(0)))


def _seconds(shape: Shape, machine: Machine, processes: int, *, streamed: bool) -> float:
    """Of loading and computing. processes: of a machine."""
    computing = (
        2 * shape.used * (CALIBRATION + PLANS * HELD_OUT) / (machine.speed * processes * machine.machines)
    )
    size = (SWEEPS if streamed else ONCE) * shape.total * shape.stored
    loading = max(processes * size / DISK, size / 1e9 * LOADING[int(shape.stored)])
    return max(computing, loading) if streamed and machine.cards else computing + loading


def gigabytes(size: float) -> str:
    """A size with two digits."""
    return f"{size / 1e9:.3g} GB"


def duration(seconds: float) -> str:
    """A time, as people say it."""
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.2g} s"


if __name__ == "__main__":
    main()
