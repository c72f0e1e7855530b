"""What a training leaves on disk: the losses of every step, the curve of held-out loss against training tokens; and its progress bar."""

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
from finetune.trainer import RecoveryTrainer

STEPS, CURVE = "training.csv", "curve.csv"
HEADS = {
    STEPS: ("step", "tokens", "seconds", "loss", "ce", "kl", "grad_norm", "learning_rate"),
    CURVE: ("step", "tokens", "seconds", "held_out"),
}


class TrainingLog(TrainerCallback):
    """Rows of training.csv (losses of the batches of a step, gradient norm before clipping) and curve.csv (held-out loss).

    points: steps after which held_out() is asked for the mean loss on the validation text; tokens_per_step: training tokens. A resumed
    training goes on behind the rows of the steps it keeps.
    """

    def __init__(
        self,
        folder: Path,
        trainer: RecoveryTrainer,
        points: set[int],
        tokens_per_step: int,
        held_out: Callable[[], float],
    ) -> None:
        self.folder, self.trainer, self.points, self.held_out = folder, trainer, points, held_out
        self.tokens_per_step, self.started = tokens_per_step, 0.0
        self.bar: Any = None

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        before = [_keep_until(self.folder / name, head, state.global_step) for name, head in HEADS.items()]
        self.started = time.monotonic() - max(before)
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
        self.bar.set_postfix_str(
            f"loss {loss:z.3f}", refresh=False
        )  # else a bar shows that is too short to be ended
        self.bar.update(1)
        self._append(STEPS, state.global_step, loss, ce, kl, float(logs["grad_norm"]), logs["learning_rate"])
        if state.global_step in self.points:
            self._measure(state.global_step)

    def close(self) -> None:
        """Ends the bar, also of a training that stopped."""
        if self.bar is not None:
            self.bar.close()

    def _measure(self, step: int) -> None:
        began = time.monotonic()
        with evaluating(self.trainer.wrapped):
            loss = self.held_out()
        self.started += time.monotonic() - began  # measuring is not training
        self._append(CURVE, step, loss)

    def _append(self, name: str, step: int, *values: float) -> None:
        path = self.folder / name
        with naming(path), path.open("a", newline="", encoding="utf-8") as file:
            seconds = round(time.monotonic() - self.started, 3)
            csv.writer(file).writerow(
                (step, step * self.tokens_per_step, seconds, *(repr(float(value)) for value in values))
            )


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of training.csv or curve.csv; a damaged line is dropped, and one that a kill left, also where its number can be read."""
    if not path.is_file():
        return []
    whole = path.read_text(encoding="utf-8", errors="replace").replace("\0", "").rpartition("\n")[0]
    found = []
    for row in csv.DictReader(io.StringIO(whole)):
        with suppress(TypeError, ValueError):  # too few, too many, no numbers
            found.append({name: float(value) for name, value in row.items()})
    return found


def _keep_until(path: Path, head: tuple[str, ...], step: int) -> float:
    """Rewrites a file without the rows behind `step` (and of step 0, for a training that begins); gives the seconds of the last one."""
    rows = [row for row in read_rows(path) if row["step"] <= step and step > 0]
    with replacing(path) as fresh, fresh.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(
            [[int(row["step"]), int(row["tokens"]), *(repr(row[name]) for name in head[2:])] for row in rows]
        )
    return rows[-1]["seconds"] if rows else 0.0
