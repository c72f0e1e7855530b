"""Runs that are killed at a chosen call, and what has to be the same after them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prune.audit.tokens import Audit
from prune.recipe.read import read_recipe
from prune.run.pipeline import Run
from prune.session.prepare import prepare


class Killed(BaseException):
    """SIGKILL: nothing is tidied up."""


def run(path: Path, out: Path, *overrides: str, force: bool = False) -> dict[str, Any]:
    return Run(prepare(read_recipe(path, overrides), out, force)).execute().result


def audit(path: Path, out: Path, *overrides: str) -> dict[str, Any]:
    return Audit(prepare(read_recipe(path, overrides), out)).execute()


def without_time(result: dict[str, Any]) -> dict[str, Any]:
    plans = [
        {**plan, "curve": [{k: v for k, v in row.items() if k != "seconds"} for row in plan["curve"]]}
        for plan in result["plans"]
    ]
    return {**{k: v for k, v in result.items() if k not in ("run", "checkpoint", "adapter")}, "plans": plans}


def numbers(result: dict[str, Any]) -> Any:
    """Everything but times and places."""
    recovery = result["recovery"] and without_time(result["recovery"])
    return {
        **{key: value for key, value in result.items() if key not in ("run", "checkpoint")},
        "recovery": recovery,
    }


def killed(
    monkeypatch: pytest.MonkeyPatch,
    work: Callable[[], Any],
    module: Any,
    name: str,
    when: Callable[..., bool],
) -> None:
    """Runs `work` until module.name is called with arguments that fit."""
    original = getattr(module, name)

    def kill(*args: Any, **kwargs: Any) -> Any:
        if when(*args):
            broken.setattr(shutil, "rmtree", lambda *_, **__: None)
            raise Killed
        return original(*args, **kwargs)

    with monkeypatch.context() as broken:
        broken.setattr(module, name, kill)
        with pytest.raises(Killed):
            work()
