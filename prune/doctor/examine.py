"""The examination: facts first, then what they mean for a run."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from experts.errors import one_line
from prune.doctor.devices import devices
from prune.doctor.folders import cache, can_lock, here, hub_cache
from prune.doctor.packages import unfit_packages, versions
from prune.doctor.result import DoctorResult, FindingJson

LITTLE_MEMORY = 2 * 10**9  # bytes; the demo takes about as much
LITTLE_DISK = 10**9  # bytes


def examine() -> DoctorResult:
    """Look at everything that a run depends on.

    Raises:
        ExciseError: a setting of the hub in the environment cannot be read.
    """
    from experts.disk.names import hub_settings

    with hub_settings():
        from huggingface_hub import constants
    problems = [*unfit_packages(), *_no_temporary_files()]
    result: DoctorResult = {
        "problems": problems,
        "notes": [],
        "versions": versions(),
        "devices": devices(problems),
        "cache": cache(),
        "hub": hub_cache(),
        "here": here(),
        "locks": can_lock(Path.cwd()),
        "offline": bool(constants.HF_HUB_OFFLINE),
    }
    result["problems"] += _problems(result)
    result["notes"] += _notes(result)
    return result


def _no_temporary_files() -> Iterator[FindingJson]:
    """Libraries need some."""
    try:
        with tempfile.TemporaryFile():
            return
    except OSError as error:
        yield {
            "what": f"no temporary file can be made ({error.strerror or one_line(error)})",
            "way_out": "free some space, or name another folder in TMPDIR",
        }


def _problems(result: DoctorResult) -> Iterator[FindingJson]:
    """What would stop a run."""
    place = result["here"]
    if not place["writable"]:
        yield {
            "what": f"{place['path']}: cannot be written, and runs are made in it",
            "way_out": "work in another folder, or name one with --output",
        }
    if place["free"] == 0:
        yield {
            "what": f"{place['path']}: the disk is full",
            "way_out": "free some space, or work on another disk",
        }


def _notes(result: DoctorResult) -> Iterator[FindingJson]:
    """What makes a run slower, smaller or lonelier."""
    if not result["cache"]["writable"]:
        place = result["cache"]["path"] or "there is no home folder"
        yield {
            "what": f"the cache cannot be written ({place}): results stay in their run folder",
            "way_out": "name a folder in EXCISE_CACHE",
        }
    if not result["hub"]["writable"]:
        yield {
            "what": f"{result['hub']['path']}: cannot be written, so no model can be downloaded",
            "way_out": "name another folder in HF_HOME",
        }
    if result["offline"]:
        yield {
            "what": "HF_HUB_OFFLINE is set: models come from the local cache alone",
            "way_out": "unset HF_HUB_OFFLINE to download",
        }
    if not result["locks"]:
        yield {
            "what": f"{result['here']['path']}: this file system has no locks",
            "way_out": "start no second run in the same folder",
        }
    if result["devices"]["memory"] < LITTLE_MEMORY:
        yield {"what": "little memory is free", "way_out": "the demo takes 2 GB; end other programs"}
    if 0 < result["here"]["free"] < LITTLE_DISK:
        yield {"what": "little disk is free here", "way_out": "free some, or name another --output"}
