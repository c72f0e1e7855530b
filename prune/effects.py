"""`excise effects`: text → windows → the raw table of effects. A window that is finished is never measured again."""

import sys
import time
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from criteria.text import Windows, consecutive
from experts.anatomy import Anatomy, dissect, load, load_tokenizer
from experts.effects import Instrument
from experts.errors import ExciseError
from experts.means import mean_outputs
from experts.modes import Mode
from experts.plan import Plan
from prune.layout import lay_out
from prune.locate import model_folder
from prune.parts import Parts
from prune.request import Request
from prune.shards import fingerprint, open_checkpoint
from prune.stages import key_of
from validate.effects import Cells, measure
from validate.rig import check_rig


def run(request: Request) -> dict[str, Any]:
    """Measures, or finishes measuring, and writes the table. Gives what was done, in numbers."""
    source = model_folder(request.model)
    layout = lay_out(open_checkpoint(source))
    layers = request.check(layout.shape)
    windows = consecutive(request.text, load_tokenizer(source, request.trust_remote_code), request.window, request.sequences)
    asked = (request.scope, request.mode, layers, request.experts, request.dtype, request.trust_remote_code)
    parts = Parts(request.output, key_of("effects", fingerprint(layout.checkpoint), windows.hash, asked), request.force)
    missing = parts.missing(len(windows))
    notes: list[str] = []
    seconds = 0.0
    if missing:
        anatomy = dissect(load(source, request.dtype, request.trust_remote_code))
        seconds, notes = _measure(request, anatomy, windows, layers, missing, parts)
    rows_now = parts.rows(missing)
    table = parts.join(len(windows))
    delta, divergence = (table[name].to_numpy() for name in ("delta", "kl"))
    return {
        "table": str(request.output),
        "rows": table.num_rows,
        "windows": len(windows),
        "windows_now": len(missing),
        "rows_now": rows_now,
        "seconds": round(seconds, 2),
        "mean_delta": float(delta.mean()),
        "mean_kl": float(divergence.mean()),
        "notes": notes,
    }


def _measure(
    request: Request, anatomy: Anatomy, windows: Windows, layers: tuple[int, ...], missing: list[int], parts: Parts
) -> tuple[float, list[str]]:
    """The windows that are missing; the rig and the fast path are checked before. Gives the seconds of the measurement, and notes."""
    check_rig(anatomy, windows, half_plan(anatomy))
    tokens = torch.from_numpy(windows.tokens).to(next(anatomy.model.parameters()).device)
    means = mean_outputs(anatomy, tokens) if request.mode is Mode.MEAN else None
    instrument = Instrument(anatomy, request.mode, means)
    instrument.check(tokens, request.scope)
    for note in instrument.notes:
        tqdm.write(f"note: {note}", file=sys.stderr)
    begun, what = time.monotonic(), f"effects ({request.scope}, {request.mode})"
    with tqdm(total=len(tokens), initial=len(tokens) - len(missing), desc=what, unit="window", delay=2) as bar:
        for number, table in measure(instrument, tokens, missing, Cells(request.scope, layers, request.experts or None)):
            if not np.isfinite(table["delta"]).all():
                raise ExciseError(
                    f"window {number}: an effect is not finite; is the model sound in {anatomy.model.dtype}? Try --dtype float32"
                )
            parts.keep(number, table)
            bar.update()
    return time.monotonic() - begun, instrument.notes


def half_plan(anatomy: Anatomy) -> Plan:
    """Keeps the first half of every router group, or as few as can route: a plan to check the instrument with."""
    per_group = anatomy.experts // anatomy.groups
    each = min(per_group, max(per_group // 2, -(-anatomy.top_k // anatomy.top_groups), 2))
    kept = tuple(group * per_group + i for group in range(anatomy.groups) for i in range(each))
    return Plan(anatomy.experts, dict.fromkeys(anatomy.indices, kept), criterion="check of the instrument")
