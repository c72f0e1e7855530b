"""`excise effects`: text → windows → the raw table of effects. What is finished is never measured again."""

import shutil

import pyarrow as pa

from criteria.text.context_length import check_vocabulary, context_note
from criteria.text.reading import consecutive
from criteria.text.windows import Windows
from experts.disk.layout import Layout
from experts.disk.names import commit_of
from experts.keys import key_of, libraries
from experts.model import Model
from experts.notes import tell
from prune.effects.partial_table import PartialTable, partial_folder
from prune.effects.request import Request
from prune.effects.result import EffectsResult
from validate.active_experts import Removals
from validate.measured_removals import measure_removals


def run(request: Request, layout: Layout) -> EffectsResult:
    """Measure, or finish measuring, and write the table.

    Returns:
        What was done, in numbers.
    """
    model = _model(request, layout)
    windows, caution = _windows(request, model)
    layers = request.check(layout.shape)
    parts = PartialTable(request.output, _key(request, model, windows, layers), request.force)
    missing = parts.missing(len(windows), layers)
    seconds, notes = 0.0, list[str]()
    if missing:
        if caution:
            tell(caution)
        measurement = measure_removals(
            model,
            windows,
            missing,
            Removals(request.scope, request.experts or None),
            mode=request.mode,
            means_of=windows,
            keep=parts.keep,
            title="effects",
        )
        seconds, notes = measurement.seconds, [*measurement.notes, *([caution] if caution else [])]
        _clear_spill(model)
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


def _model(request: Request, layout: Layout) -> Model:
    """The model, of which hidden states wait in the folder of the unfinished table, if they do not fit."""
    return Model(
        layout,
        dtype=request.dtype,
        trust_remote_code=request.trust_remote_code,
        memory=request.memory_settings(partial_folder(request.output) / "spill"),
    )


def _clear_spill(model: Model) -> None:
    """Everything is measured: nothing is taken up from there."""
    if model.memory.spill is not None:
        shutil.rmtree(model.memory.spill, ignore_errors=True)


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
