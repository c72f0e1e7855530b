"""Keys of results: a result is used again only where everything that it depends on is the same."""

import hashlib
import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

FORMAT = 2  # raise when a stage computes something else from the same inputs


def key_of(*inputs: Any) -> str:
    """A short hash of everything a result depends on."""
    return hashlib.sha256(json.dumps([FORMAT, *inputs], sort_keys=True, default=str).encode()).hexdigest()[
        :16
    ]


def libraries() -> tuple[str, ...]:
    """What computes a model: numbers of two versions are not mixed."""
    return tuple(f"{name} {version_of(name)}" for name in ("torch", "transformers"))


def environment() -> dict[str, str]:
    """Versions and machine that a result was made with."""
    packages = ("excise", "torch", "transformers", "safetensors", "numpy", "scipy")
    machine = {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": platform.machine(),
    }
    return {**machine, **{name: version_of(name) for name in packages}}


def version_of(package: str) -> str:
    """Of an installed package; a checkout can be run without being installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
