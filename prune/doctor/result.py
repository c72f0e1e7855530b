"""What `excise doctor --json` prints."""

from typing import TypedDict


class FindingJson(TypedDict):
    """Something that is wrong, or good to know."""

    what: str
    way_out: str  # what to do; empty = nothing needs doing


class GpuJson(TypedDict):
    """A CUDA device."""

    name: str
    free: int  # bytes
    total: int  # bytes


class DevicesJson(TypedDict):
    """What a run computes on."""

    cores: int  # processor cores that this process may run on
    memory: int  # bytes that this process may still take
    gpus: list[GpuJson]


class FolderJson(TypedDict):
    """A place that results or downloads are kept in."""

    path: str | None  # None = there is none
    writable: bool
    entries: int  # files, or models in the cache of the hub
    size: int  # bytes of them
    free: int  # bytes free there


class DoctorResult(TypedDict):
    """Problems first."""

    problems: list[FindingJson]  # each would stop a run
    notes: list[FindingJson]
    versions: dict[str, str | None]  # Python and packages; None = not installed
    devices: DevicesJson
    cache: FolderJson  # calibrations and experiments, kept for all runs
    hub: FolderJson  # models from the hub
    here: FolderJson  # the working folder, in which `runs` is made
    locks: bool  # whether files in the working folder can be locked
    offline: bool  # whether HF_HUB_OFFLINE keeps Excise off the network
