"""How much memory this process may still take, where a container, a job or a shell limits it. No torch.

Beyond such a limit the kernel kills the process, or refuses memory, whatever the machine has free.
"""

from collections.abc import Iterator
from pathlib import Path

import psutil

CGROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def memory_left(cgroups: Path = CGROUPS, own: Path = OWN) -> Iterator[int]:
    """Bytes left under every limit that is set, in no order. cgroups, own: where Linux shows them."""
    for line in _read(own).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            for root in (cgroups, cgroups / "unified"):
                yield from _left(root, path, ("memory.max", "memory.high"), "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            limits, used = ("memory.limit_in_bytes",), "memory.usage_in_bytes"
            yield from _left(cgroups / "memory", path, limits, used, "total_inactive_file")
    yield from _address_space()


def _left(root: Path, path: str, limits: tuple[str, ...], used: str, cache: str) -> Iterator[int]:
    """Of a group and all groups above it; the file cache that the kernel gives back first counts as free.

    Inside a container `path` may be the host's, and `root` the container's own group: it then leads nowhere.
    """
    group = root / path.strip("/")
    for folder in (group, *group.parents):
        taken = _number(folder / used)
        found = [number for name in limits if (number := _number(folder / name)) is not None]
        if taken is not None and found:
            yield max(0, min(found) - taken + _entry(folder / "memory.stat", cache))
        if folder == root:
            return


def _address_space() -> Iterator[int]:
    """ulimit -v."""
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
    """A line `name number` of memory.stat; 0 where there is none."""
    lines = dict(line.partition(" ")[::2] for line in _read(path).splitlines())
    return int(lines[name]) if lines.get(name, "").isdecimal() else 0
