"""How much memory this process may still take, where a container, a job or a shell limits it.

Beyond such a limit the kernel kills the process, or refuses memory, whatever the machine has free.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")  # where Linux shows the limits of all groups
OWN_GROUPS = Path("/proc/self/cgroup")  # and to which groups this process belongs


@dataclass(frozen=True)
class _Files:
    """Names of the files in which a version of cgroups shows memory.

    Attributes:
        limits: bytes that the group may take
        used: bytes that it takes
        cache: entry of memory.stat for the file cache that the kernel reclaims first
    """

    limits: tuple[str, ...]
    used: str
    cache: str


VERSION_1 = _Files(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")
VERSION_2 = _Files(("memory.max", "memory.high"), "memory.current", "inactive_file")


_sharing = [1]


def share_machine(processes: int) -> None:
    """From now on this process takes its part of memory and disk. processes: that share this machine."""
    _sharing[0] = max(1, processes)


def processes_here() -> int:
    """How many processes of torchrun share this machine; each may take its part of memory and disk."""
    return _sharing[0]


def free_memory() -> int:
    """Bytes of main memory that this process may still take: its part of what is free, or of a limit."""
    return min([int(psutil.virtual_memory().available), *memory_left()]) // processes_here()


def memory_left(cgroups: Path = CGROUPS, own_groups: Path = OWN_GROUPS) -> Iterator[int]:
    """Bytes left under every limit that is set, in no order."""
    for line in _read(own_groups).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            for root in (cgroups, cgroups / "unified"):
                yield from _left_in_groups(root, path, VERSION_2)
        elif "memory" in controllers.split(","):
            yield from _left_in_groups(cgroups / "memory", path, VERSION_1)
    yield from _address_space()


def _left_in_groups(root: Path, path: str, files: _Files) -> Iterator[int]:
    """Bytes left in a group and in all groups above it.

    Inside a container `path` may be the host's, and `root` the container's own group: it then leads nowhere.
    """
    group = root / path.strip("/")
    for folder in (group, *group.parents):
        left = _left(folder, files)
        if left is not None:
            yield left
        if folder == root:
            return


def _left(group: Path, files: _Files) -> int | None:
    """Bytes left in one group; None where it has no limit. File cache counts as free."""
    used = _number(group / files.used)
    numbers = (_number(group / name) for name in files.limits)
    limits = [number for number in numbers if number is not None]
    if used is None or not limits:
        return None
    return max(0, min(limits) - used + _entry(group / "memory.stat", files.cache))


def _address_space() -> Iterator[int]:
    """Bytes left under the limit of a shell (ulimit -v)."""
    try:
        import resource
    except ImportError:  # not on every system
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        yield max(0, limit - int(psutil.Process().memory_info().vms))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # no such limit here
        return ""


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdecimal() else None  # "max": no limit


def _entry(path: Path, name: str) -> int:
    """The number in a line `name number` of memory.stat; 0 where there is none."""
    lines = dict(line.partition(" ")[::2] for line in _read(path).splitlines())
    return int(lines[name]) if lines.get(name, "").isdecimal() else 0
