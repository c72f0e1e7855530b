"""Counts how often a command does what takes long."""

from collections.abc import Callable
from typing import Any

import pytest

from criteria import calibration as calibration_module
from experts import load_anatomy
from prune.run import pruned_folder
from validate import chance


def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often the expensive things happen."""
    calls = dict.fromkeys(("load", "observe", "check_rig", "export"), 0)

    def wrap(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return work(*args, **kwargs)

        return counting

    for name, places in {
        "load": (load_anatomy,),
        "observe": (calibration_module,),
        "check_rig": (chance,),
        "export": (pruned_folder,),
    }.items():
        for module in places:
            function = "load_network" if name == "load" else name
            monkeypatch.setattr(module, function, wrap(name, getattr(module, function)))
    return calls


def measurements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Calibrations and experiments that are really measured."""
    done: list[str] = []
    observe, measure = calibration_module.observe, calibration_module.measure
    monkeypatch.setattr(
        calibration_module, "observe", lambda *given: (done.append("observe"), observe(*given))[1]
    )
    monkeypatch.setattr(
        calibration_module, "measure", lambda *given: (done.append("measure"), measure(*given))[1]
    )
    return done
