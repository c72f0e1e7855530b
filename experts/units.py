"""Sizes in bytes, as people write them."""

UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


def human(size: int) -> str:
    """A size in bytes with a decimal unit: 1.50 GB."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size} B"


def parse_size(text: str, key: str = "target_size") -> int:
    """The bytes of '8GB', '500 MiB' or '1.5e9'. Raises ValueError, which names the key, for anything else."""
    number = text.strip().rstrip("BbKkMmGgTtIi ")
    unit = text.strip()[len(number) :].strip().upper()
    try:
        size = int(float(number) * UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        size = 0
    if size <= 0:
        raise ValueError(f"{key} {text!r} is not a size; write for example 8GB or 500MiB")
    return size


def parse_memory(text: str, key: str) -> int:
    """As `parse_size`, but never without a unit: nobody means 24 bytes. Raises ValueError."""
    if text.strip()[-1:].isdigit():
        raise ValueError(f"{key} {text!r} has no unit; write for example 24GB or 500MiB")
    return parse_size(text, key)
