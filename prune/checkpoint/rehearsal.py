"""What an export and its reload would be refused for, asked before any work, of plans like the real one."""

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
from prune.checkpoint.config import patched_config
from prune.checkpoint.output import check_space, is_foreign
from prune.checkpoint.quantization import renumber
from prune.checkpoint.refit_storage import check_settings_beside
from prune.checkpoint.slices import pruned_size
from prune.checkpoint.source_files import other_files
from prune.checkpoint.unequal import modeling_source


def trial_plans(shape: Shape, budget: Budget) -> list[Plan]:
    """A plan with the counts per layer that a budget asks for, whatever experts it keeps.

    In scope global the counts are not known yet: an even plan, and an unequal one where that can come out.
    """
    layers = shape.num_layers
    if budget.scope == "layer":
        return [_first_of_each_group(shape, budget.of_layers(layers))]
    even = shape.even_below(budget.total // layers)
    plans = [_first_of_each_group(shape, (even,) * layers)]
    if layers > 1 and budget.floor < even:
        low = shape.even_above(budget.floor)
        plans.append(_first_of_each_group(shape, (low, *(even,) * (layers - 1))))
    return plans


def _first_of_each_group(shape: Shape, counts: Iterable[int]) -> Plan:
    counted = zip(shape.layers, counts, strict=True)
    return Plan(shape.num_experts, {layer: shape.first_of_each_group(count) for layer, count in counted})


def check_export(
    layout: Layout, plans: Iterable[Plan], out: Path, *, dequantise: bool = False, beside: int = 0
) -> None:
    """Refuse whatever the export of such plans would be refused for. This needs no torch.

    Args:
        layout: of the source
        plans: like the one that will be written
        out: folder of the checkpoint
        dequantise: experts that the source stores quantised are written in bfloat16
        beside: bytes that lie on the same disk meanwhile

    Raises:
        ExciseError: the output is taken, a file of the source cannot be read, the disk is too small, or the
            configuration cannot be written for such a plan.
    """
    if is_foreign(out):
        raise ExciseError(
            f"{out}: exists and was not written by Excise (no {PLAN} in it); "
            "move it away, or choose another --output"
        )
    for file in other_files(layout.checkpoint.folder):
        _check_readable(file)
    if dequantise:
        check_settings_beside(layout)
    for plan in plans:
        size = pruned_size(layout, plan, dequantise=dequantise)
        if not out.exists():
            check_space(out, size + beside)
        patched_config(layout, plan, dequantise=dequantise)
        _check_quantization(layout, plan)


def _check_readable(file: Path) -> None:
    try:
        with file.open("rb") as opened:
            opened.read(1)
    except OSError as error:
        why = error.strerror or error
        raise ExciseError(f"{file}: cannot be read ({why}), and belongs to the new checkpoint") from error


def _check_quantization(layout: Layout, plan: Plan) -> None:
    """Of the files that quantisation tools write beside config.json."""
    for name in QUANTIZATION_FILES:
        path = layout.checkpoint.folder / name
        if path.is_file():
            renumber(read_object(path, "no such file"), plan, str(path))


def check_reload(
    layout: Layout, plans: Iterable[Plan], trust_remote_code: bool, *, dequantise: bool = False
) -> None:
    """Build each pruned model from its configuration, without weights. This needs torch.

    Raises:
        ExciseError: a model cannot be built, so its checkpoint could not be loaded afterwards.
    """
    for plan in plans:
        with tempfile.TemporaryDirectory(prefix="excise-") as name:
            # transformers keeps code by the name of its folder: always the same one.
            folder = Path(name) / "rehearsal"
            folder.mkdir()
            _write_model_without_weights(layout, plan, folder, dequantise)
            _check_builds(layout.checkpoint.folder, folder, plan.uniform, trust_remote_code)


def _write_model_without_weights(layout: Layout, plan: Plan, folder: Path, dequantise: bool) -> None:
    config = patched_config(layout, plan, dequantise=dequantise)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for code in layout.checkpoint.folder.glob("*.py"):
        shutil.copyfile(code, folder / code.name)
    if not plan.uniform:
        source = modeling_source(config["architectures"][0], layout.shape.num_experts)
        (folder / MODELING).write_text(source, encoding="utf-8")


def _check_builds(source: Path, folder: Path, uniform: bool, trust_remote_code: bool) -> None:
    from experts.loading import skeleton  # torch

    try:
        skeleton(folder, trust_remote_code or not uniform)
    except ExciseError as error:
        skeleton(source, trust_remote_code)  # raises if it is the source that cannot be built
        counts = "equal" if uniform else "unequal"
        why = str(error).replace(f"{folder}: ", "")
        raise ExciseError(
            f"{source}: pruned to {counts} counts per layer it could not be loaded: {why}"
        ) from error
