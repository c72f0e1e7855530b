"""What `--dry-run --json` prints."""

from typing import TypedDict


class ForecastModelJson(TypedDict):
    """The model that will be read."""

    name: str  # folder, or organisation/name with the commit
    size: int  # bytes of all tensors as they are stored
    download: int  # bytes that are not here yet, a teacher's included


class ForecastTextJson(TypedDict):
    """A text that will be read."""

    part: str  # calibration, validation or training
    windows: int
    length: int  # tokens per window
    sources: list[str]  # as the recipe names them


class StageJson(TypedDict):
    """Something that will be computed."""

    stage: str
    windows: int | None  # plain forwards of one window that it costs, rounded; None = not known before
    length: int  # tokens per window
    detail: str  # how this number comes about, or why there is none


class MemoryJson(TypedDict):
    """Memory, on the device that the model is loaded to."""

    model: str  # resident or streamed, as a machine without GPUs would have it
    weights: int  # bytes of the weights in the recipe's dtype
    streamed: int  # bytes of them at a time, where decoder layers are read one by one
    states: int  # bytes of hidden states that wait between layers; 0 where the weights stay in memory
    spill: str | None  # where those go that do not fit; None where the weights stay in memory
    spilled: int  # bytes of them, at most
    readings: list[str]  # what reads all of the model's files, a word for every reading
    reads: int  # bytes that are read, with the fingerprint, the export and the proof of the checkpoint
    loading: float  # seconds that these readings take, where the disk is no slower than one thread
    limit: int | None  # memory.limit in bytes
    batch: int  # bytes of the logits of the largest batch, in float32
    free: int  # bytes that this process may still take, without a GPU's


class DiskJson(TypedDict):
    """The run folder."""

    run: str
    checkpoint: int | None  # bytes of what is written; None = no checkpoint
    refit: int  # bytes of refitted weights that lie beside it until it is proven; 0 = none
    free: int  # bytes free there


class ForecastJson(TypedDict):
    """What a command will do."""

    command: str
    model: ForecastModelJson
    texts: list[ForecastTextJson]
    stages: list[StageJson]  # in order; what an earlier run finished is not taken off
    writes: list[str]  # files in the run folder
    memory: MemoryJson
    disk: DiskJson
    seconds: float | None  # of the stages whose cost is known; None = no run has measured the speed
    seconds_from: str  # the record that it is computed from, or why there is none
    notes: list[str]  # what a user should know of the budget
