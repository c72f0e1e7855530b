"""The record of an unfinished sweep: a run that is killed is taken up from the last one.

A record is one file of states and numbers beside the files that are there anyway, and `record.json`, which
names them with their digests. It takes the place of the one before when everything else is written.
"""

import json
import time
from dataclasses import asdict
from typing import Any

from experts.errors import ExciseError, one_line
from experts.files import replacing
from experts.notes import log_traceback, tell
from experts.sweep.spill import SpillFolder, Written, bytes_of

RECORD = "record.json"
EVERY = 60.0  # seconds of work that a killed run may lose, unless a single part takes longer


class Journal:
    """Records of one sweep.

    Args:
        spill: where they are
        key: identity of everything that the results depend on
    """

    def __init__(self, spill: SpillFolder, key: str) -> None:
        self.spill, self.key = spill, key
        self._last = self._before = time.monotonic()
        self._main: str | None = None
        self._told = False

    @property
    def has_record(self) -> bool:
        """Whether there is one to resume from."""
        return self._main is not None

    def is_due(self) -> bool:
        """Whether it is time for another record; asked after every part.

        The next part is taken to last as long as this one did.
        """
        now = time.monotonic()
        part, self._before = now - self._before, now
        return now + part - self._last >= EVERY

    def write(self, content: dict[str, Any], files: list[str]) -> None:
        """Write a record.

        Args:
            content: tensors, numbers and texts in lists and dictionaries
            files: names of the other files that it needs
        """
        try:
            self._write(content, files)
        except (ExciseError, OSError) as error:
            self._tell_once(f"the sweep goes on without a new record of its progress ({one_line(error)})")
        self._last = self._before = time.monotonic()

    def _write(self, content: dict[str, Any], files: list[str]) -> None:
        if bytes_of(content) > self.spill.free():
            raise ExciseError(f"{self.spill.path}: the disk has no room for it")
        before, main = self._main, self.spill.write(content)
        named = [main, *files]
        record = {
            "key": self.key,
            "main": main,
            "files": {name: asdict(self.spill.files[name]) for name in named},
        }
        try:
            with replacing(self.spill.path / RECORD) as fresh:
                fresh.write_text(json.dumps(record), encoding="utf-8")
        except OSError:
            self.spill.remove(main)
            raise
        self._main = main
        self.spill.pin(named)
        if before is not None:
            self.spill.remove(before)

    def read(self) -> dict[str, Any] | None:
        """What the last record holds; None, and a note, where it cannot be used."""
        path = self.spill.path / RECORD
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["key"] != self.key:
                raise ValueError("it is of another model or another job")
            self.spill.adopt({name: Written(**known) for name, known in record["files"].items()})
            content: dict[str, Any] = self.spill.read(record["main"])
        except FileNotFoundError:
            self.forget()
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            log_traceback(error, "the sweep begins anew")
            tell(f"{path}: this record cannot be used ({one_line(error)}); the sweep begins anew")
            self.forget()
            return None
        self._main = record["main"]
        self.spill.pin(list(record["files"]))
        return content

    def forget(self) -> None:
        """Begin anew: what is there is removed."""
        (self.spill.path / RECORD).unlink(missing_ok=True)
        self._main = None
        self.spill.pin(())
        self.spill.files.clear()
        self.spill.remove_strangers()

    def _tell_once(self, note: str) -> None:
        if not self._told:
            tell(note)
        self._told = True
