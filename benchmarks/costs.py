"""What a run costs on models that do not fit: a model of bytes and floating-point operations, on paper.

    python -m benchmarks.costs

The tables of docs/scale.md. Assumptions are the constants below; nothing here is measured.
"""

from dataclasses import dataclass

DISK = 3e9  # bytes per second, read in order
MACHINES = {
    "64 cores": (5e12, 1),
    "1 × H100": (250e12, 1),
    "8 × H100": (250e12, 8),
    "4 × 8 H100": (250e12, 32),
}
CALIBRATION, HELD_OUT, PLANS = 128 * 512, 64 * 512, 23  # tokens, tokens, plans: the recipes for large models
SWEEPS = 4  # reads of the files: calibration, checks of the instrument, plans, the written checkpoint
COPIES = 2.5  # of the largest layer, at most, while it is read and converted


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
        sizes = (shape.total * shape.stored, layer, outside, outside + COPIES * layer, states)
        print(f"| {name} | {' | '.join(map(gigabytes, sizes))} |")
    print(f"\n| model | reading, {SWEEPS} sweeps | {' | '.join(MACHINES)} |")
    print(f"| --- | --- |{' --- |' * len(MACHINES)}")
    for name, shape in MODELS.items():
        work = 2 * shape.used * (CALIBRATION + PLANS * HELD_OUT)
        reading = SWEEPS * shape.total * shape.stored / DISK
        times = [work / (speed * cards) for speed, cards in MACHINES.values()]
        print(f"| {name} | {duration(reading)} | {' | '.join(map(duration, times))} |")


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
