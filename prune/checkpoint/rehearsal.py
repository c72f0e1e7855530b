"""What an export and its reload would be refused for, asked before any work, with plans like the one to come."""

import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from criteria.budget import Budget
from experts.disk.companions import MODELING, PLAN, QUANTIZATION_FILES
from experts.disk.layout import Layout
from experts.disk.strict_json import read_object
from experts.errors import ExciseError
from experts.plan import Plan
from experts.shape import Shape
from prune.checkpoint.quantization import renumbered
from prune.checkpoint.slices import patched_config, slice_layout
from prune.checkpoint.unequal import modeling_source
from prune.checkpoint.write import check_space, other_files


def trial_plans(shape: Shape, budget: Budget) -> list[Plan]:
    """A plan with the counts a budget asks for; in scope global also one whose counts are unequal, where that can come out."""
    layers = len(shape.layers)
    if budget.scope == "layer":
        return [_first_of_each_group(shape, budget.of_layers(layers))]
    even = shape.even_below(budget.total // layers)
    plans = [_first_of_each_group(shape, (even,) * layers)]
    if layers > 1 and budget.floor < even:
        low = shape.even_above(budget.floor)
        plans.append(_first_of_each_group(shape, (low, *(even,) * (layers - 1))))
    return plans


def _first_of_each_group(shape: Shape, counts: Iterable[int]) -> Plan:
    kept = {
        layer: shape.first_of_each_group(count) for layer, count in zip(shape.layers, counts, strict=True)
    }
    return Plan(shape.num_experts, kept)


def check_export(layout: Layout, plans: Iterable[Plan], out: Path) -> None:
    """Raises ExciseError for whatever the export of such plans would be refused for. No torch."""
    if out.exists() and not (out / PLAN).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise ExciseError(
            f"{out}: exists and was not written by Excise (no {PLAN} in it); move it away, or choose another --output"
        )
    for file in other_files(layout.checkpoint.folder):
        _check_readable(file)
    for plan in plans:
        shards = slice_layout(layout, plan)
        if not out.exists():
            check_space(out, sum(piece.size for pieces in shards.values() for piece in pieces))
        patched_config(layout, plan)
        for name in QUANTIZATION_FILES:
            if (path := layout.checkpoint.folder / name).is_file():
                renumbered(read_object(path, "no such file"), plan, str(path))


def _check_readable(file: Path) -> None:
    try:
        with file.open("rb") as opened:
            opened.read(1)
    except OSError as error:
        raise ExciseError(
            f"{file}: cannot be read ({error.strerror or error}), and belongs to the new checkpoint"
        ) from error


def check_reload(layout: Layout, plans: Iterable[Plan], trust_remote_code: bool) -> None:
    """Builds each pruned model from its configuration, without weights: what cannot be built could not be loaded afterwards."""
    from experts.loading import skeleton  # torch

    for plan in plans:
        with tempfile.TemporaryDirectory(prefix="excise-") as name:
            folder = (
                Path(name) / "rehearsal"
            )  # transformers keeps code by the name of its folder: always the same
            folder.mkdir()
            config = patched_config(layout, plan)
            (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
            for code in layout.checkpoint.folder.glob("*.py"):
                shutil.copyfile(code, folder / code.name)
            if not plan.uniform:
                (folder / MODELING).write_text(
                    modeling_source(config["architectures"][0], layout.shape.num_experts), encoding="utf-8"
                )
            try:
                skeleton(folder, trust_remote_code or not plan.uniform)
            except ExciseError as error:
                skeleton(
                    layout.checkpoint.folder, trust_remote_code
                )  # is it the source that cannot be built?
                kind = "equal" if plan.uniform else "unequal"
                said = str(error).replace(f"{folder}: ", "")
                raise ExciseError(
                    f"{layout.checkpoint.folder}: pruned to {kind} counts per layer it could not be loaded: {said}"
                ) from error
