"""Which versions are installed, and whether they are those that Excise asks for. None is imported."""

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from prune.doctor.result import FindingJson

SHOWN = ("excise", "torch", "transformers", "peft", "lm-eval", "safetensors")
AGAIN = "install Excise again: pip install -e . -c constraints.txt"


def versions() -> dict[str, str | None]:
    """Python's version and those of the packages that a result depends on; None = not installed."""
    return {"python": platform.python_version(), **{name: version_of(name) for name in SHOWN}}


def version_of(name: str) -> str | None:
    """The version of an installed package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def unfit_packages() -> Iterator[FindingJson]:
    """Requirements of Excise that are not met."""
    try:
        asked = requires("excise") or []
    except PackageNotFoundError:
        asked = []  # run from a checkout
    for text in asked:
        yield from _unfit(text)


def _unfit(text: str) -> Iterator[FindingJson]:
    try:
        from packaging.requirements import Requirement
    except ImportError:  # comes with transformers, whose absence is reported then
        return
    requirement = Requirement(text)
    if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
        return
    found = version_of(requirement.name)
    if found is None:
        yield {"what": f"{requirement.name} is not installed", "way_out": AGAIN}
    elif not requirement.specifier.contains(found, prereleases=True):
        asked = f"Excise needs {requirement.name}{requirement.specifier}"
        yield {"what": f"{requirement.name} is {found}, and {asked}", "way_out": AGAIN}
