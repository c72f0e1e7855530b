"""What a training leaves on disk: losses of every step, the curve of held-out loss; and its progress bar."""

import csv
import io
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import TrainerCallback, TrainingArguments

from experts.errors import naming
from experts.files import replacing
from experts.sharing import evaluating
from finetune.results import CurvePoint
from finetune.trainer import RecoveryTrainer

STEPS, CURVE = "training.csv", "curve.csv"
COLUMNS_OF_FILE = {
    STEPS: ("step", "tokens", "seconds", "loss", "ce", "kl", "grad_norm", "learning_rate"),
    CURVE: ("step", "tokens", "seconds", "held_out"),
}
Row = dict[str, float]


class TrainingLog(TrainerCallback):
    """Writes training.csv and curve.csv, and draws the progress bar.

    training.csv has a row per optimiser step: losses of its batches in nats per token, gradient norm before
    clipping, learning rate. curve.csv has a row per point of the curve: held-out loss in nats per token.
    `tokens` are training tokens, `seconds` those of training alone. A resumed training goes on behind the
    rows of the steps it keeps.
    """

    def __init__(
        self,
        folder: Path,
        trainer: RecoveryTrainer,
        points: set[int],
        tokens_per_step: int,
        held_out: Callable[[], float],
    ) -> None:
        """Log a training.

        Args:
            folder: where the files go
            trainer: whose losses are logged
            points: steps after which the held-out loss is measured
            tokens_per_step: training tokens of an optimiser step
            held_out: measures the mean loss on the validation text, nats per token
        """
        self.folder, self.trainer = folder, trainer
        self.points, self.held_out = points, held_out
        self.tokens_per_step = tokens_per_step
        self.started = 0.0
        self.bar: Any = None

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: Any,
        control: Any,  # noqa: ARG002
        **_: Any,
    ) -> None:
        seconds = 0.0
        for name, columns in COLUMNS_OF_FILE.items():
            rows = _rows_until(self.folder / name, state.global_step)
            _write_rows(self.folder / name, columns, rows)
            seconds = max(seconds, _seconds_of(rows))
        self.started = time.monotonic() - seconds
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=f"recovery: {self.folder.name}",
            unit="step",
            delay=2,
        )
        if state.global_step == 0:
            self._measure(0)

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: Any,
        control: Any,  # noqa: ARG002
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if logs is None or "grad_norm" not in logs:  # the summary at the end
            return
        loss, ce, kl = np.mean(self.trainer.parts, axis=0).tolist()
        self.trainer.parts.clear()
        # Refreshing would draw a bar even of a training that is over before its delay.
        self.bar.set_postfix_str(f"loss {loss:z.3f}", refresh=False)
        self.bar.update(1)
        self._append(STEPS, state.global_step, loss, ce, kl, float(logs["grad_norm"]), logs["learning_rate"])
        if state.global_step in self.points:
            self._measure(state.global_step)

    def close(self) -> None:
        """End the bar, also of a training that stopped."""
        if self.bar is not None:
            self.bar.close()

    def _measure(self, step: int) -> None:
        began = time.monotonic()
        with evaluating(self.trainer.wrapped):
            loss = self.held_out()
        self.started += time.monotonic() - began  # measuring is not training
        self._append(CURVE, step, loss)

    def _append(self, name: str, step: int, *values: float) -> None:
        seconds = round(time.monotonic() - self.started, 3)
        numbers = (repr(float(value)) for value in values)
        path = self.folder / name
        with naming(path), path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow((step, step * self.tokens_per_step, seconds, *numbers))


def read_rows(path: Path) -> list[Row]:
    """Return the rows of training.csv or curve.csv; none where there is no file.

    A damaged line is dropped, and so is the last one where a kill cut it short, even if its number can be
    read.
    """
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace").replace("\0", "")
    complete = text.rpartition("\n")[0]
    rows = []
    for row in csv.DictReader(io.StringIO(complete)):
        with suppress(TypeError, ValueError):  # too few cells, too many, no numbers
            rows.append({name: float(value) for name, value in row.items()})
    return rows


def read_curve(path: Path) -> list[CurvePoint]:
    """Return the points of curve.csv, as `read_rows` does."""
    points: list[CurvePoint] = []
    for row in read_rows(path):
        with suppress(KeyError):  # a file with other columns
            point: CurvePoint = {
                "step": row["step"],
                "tokens": row["tokens"],
                "seconds": row["seconds"],
                "held_out": row["held_out"],
            }
            points.append(point)
    return points


def _rows_until(path: Path, step: int) -> list[Row]:
    """The rows of the steps that a training resumes behind; none for a training that begins."""
    return [row for row in read_rows(path) if row["step"] <= step] if step else []


def _write_rows(path: Path, columns: tuple[str, ...], rows: list[Row]) -> None:
    """Replace a file by these rows."""
    with replacing(path) as fresh, fresh.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in rows:
            counts = (int(row["step"]), int(row["tokens"]))
            writer.writerow((*counts, *(repr(row[name]) for name in columns[2:])))


def _seconds_of(rows: list[Row]) -> float:
    """How long the training had taken at the last row."""
    return rows[-1]["seconds"] if rows else 0.0
