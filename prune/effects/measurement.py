"""`excise effects`: text → windows → the raw table of effects. What is finished is never measured again."""

import time

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from criteria.text.context_length import check_vocabulary, context_note
from criteria.text.reading import consecutive
from criteria.text.windows import Windows
from experts.anatomy import Anatomy
from experts.disk.layout import Layout
from experts.disk.names import commit_of
from experts.effects.instrument import Instrument
from experts.effects.means import mean_outputs
from experts.effects.precision import HALF
from experts.errors import ExciseError
from experts.keys import key_of, libraries
from experts.model import Model
from experts.modes import Mode
from experts.notes import tell
from prune.effects.partial_table import PartialTable
from prune.effects.request import Request
from prune.effects.result import EffectsResult
from validate.active_experts import Removals, Table
from validate.effect_table import measure_effects
from validate.rig import check_rig, rig_plan


def run(request: Request, layout: Layout) -> EffectsResult:
    """Measure, or finish measuring, and write the table.

    Returns:
        What was done, in numbers.
    """
    model = Model(layout, dtype=request.dtype, trust_remote_code=request.trust_remote_code)
    windows, caution = _windows(request, model)
    layers = request.check(layout.shape)
    parts = PartialTable(request.output, _key(request, model, windows, layers), request.force)
    missing = parts.missing(len(windows), layers)
    seconds, notes = 0.0, list[str]()
    if missing:
        seconds, notes = _measure(request, model.anatomy, windows, missing, parts, caution)
    rows_now = parts.count_rows(missing)
    table = parts.join(len(windows), layers)
    if not table.num_rows:
        notes.append("the table is empty: none of these experts is active in this text")
    result: EffectsResult = {
        "table": str(request.output),
        "rows": table.num_rows,
        "windows": len(windows),
        "windows_now": len(missing),
        "rows_now": rows_now,
        "seconds": round(seconds, 2),
        "mean_delta": _mean(table, "delta"),
        "mean_kl": _mean(table, "kl"),
        "notes": notes,
    }
    if commit := commit_of(model.folder):
        result["commit"] = commit
    return result


def _windows(request: Request, model: Model) -> tuple[Windows, str]:
    """The text in windows from its start, and what to say of their length."""
    checkpoint = model.layout.checkpoint
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    caution = context_note(request.window, checkpoint.config, shapes)
    windows = consecutive(request.text, model.tokenizer, request.window, request.sequences, request.bos)
    check_vocabulary(int(windows.tokens.max()), checkpoint.config)
    return windows, caution


def _key(request: Request, model: Model, windows: Windows, layers: tuple[int, ...]) -> str:
    """Identity of the table's rows."""
    asked = (request.scope, request.mode, layers, request.experts, request.dtype)
    computed = (request.trust_remote_code, *libraries())
    return key_of("effects", model.fingerprint, windows.hash, (*asked, *computed))


def _mean(table: pa.Table, column: str) -> float | None:
    return float(table[column].to_numpy().mean()) if table.num_rows else None


def _measure(
    request: Request,
    anatomy: Anatomy,
    windows: Windows,
    missing: dict[int, list[int]],
    parts: PartialTable,
    caution: str,
) -> tuple[float, list[str]]:
    """Measure what is missing, after checks of the instrument. Returns seconds and notes."""
    check_rig(anatomy, windows, rig_plan(anatomy.shape))
    tokens = windows.tensor(anatomy.device)
    means = mean_outputs(anatomy, tokens) if request.mode is Mode.MEAN else None
    instrument = Instrument.ready(anatomy, request.mode, request.scope, tokens, means=means)
    cautions = [*_cautions(anatomy), *([caution] if caution else [])]
    for note in cautions:
        tell(note)
    notes = [*instrument.notes, *cautions]
    begun = time.monotonic()
    removals = Removals(request.scope, request.experts or None)
    fill(parts, instrument, tokens, missing, removals, f"effects ({request.scope}, {request.mode})")
    return time.monotonic() - begun, notes


def fill(
    parts: PartialTable,
    instrument: Instrument,
    tokens: torch.Tensor,
    missing: dict[int, list[int]],
    removals: Removals,
    what: str,
) -> None:
    """Measure missing layers of windows (window -> layers), and keep each as it is finished.

    Args:
        what: title of the progress bar
    """
    with tqdm(total=sum(map(len, missing.values())), desc=what, unit="window·layer", delay=2) as bar:

        def keep(number: int, layer: int, table: Table) -> None:
            if not np.isfinite(table["delta"]).all():
                dtype = instrument.anatomy.model.dtype
                raise ExciseError(
                    f"window {number}: an effect is not finite; is the model sound in {dtype}? Try float32"
                )
            parts.keep(number, layer, table)
            bar.update()

        measure_effects(instrument, tokens, missing, removals, keep)


def _cautions(anatomy: Anatomy) -> list[str]:
    """What a reader of the numbers has to know."""
    if anatomy.model.dtype not in HALF:
        return []
    rounding = "single effects carry its rounding, some hundredths of a nat"
    return [f"measured in {anatomy.model.dtype}: {rounding}; --dtype float32 avoids it"]
