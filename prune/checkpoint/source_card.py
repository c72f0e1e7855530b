"""What a new checkpoint takes over from the source's model card: its licence and languages.

Entries are taken as they are written: YAML's own types would make `language: no` a truth value and `1.10` a
number.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

LONGEST = 2**20  # bytes that are read of a card; its front matter comes first
FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\n(.*?)\n---[ \t]*(?:\n|\Z)", re.DOTALL)
NAMES = ("README.md", "readme.md", "Readme.md")
TAKEN_OVER = ("license", "license_name", "license_link", "language")
# `key: value` on one line, for a front matter that is no YAML as a whole.
LINE = re.compile(
    rf"^({'|'.join(TAKEN_OVER)}):[ \t]*(?:'([^'\n]*)'|\"([^\"\n]*)\"|([^\s\[{{&*!|>'\"#][^#\n]*))",
    re.MULTILINE,
)
Entry = str | list[str]


@dataclass(frozen=True)
class SourceCard:
    """The source's model card, as far as a new card needs it.

    Attributes:
        entries: of its front matter, as written.
        notes: why some may be missing.
    """

    entries: Mapping[str, Entry] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_source_card(folder: Path) -> SourceCard:
    """Read the README.md of a checkpoint. One that cannot be read costs its entries, never the export."""
    path = next((folder / name for name in NAMES if (folder / name).exists()), folder / NAMES[0])
    try:
        with path.open("rb") as file:
            raw = file.read(LONGEST)
    except FileNotFoundError:
        return SourceCard()
    except OSError as error:
        return _incomplete({}, path, error.strerror or str(error))
    lines = raw.decode("utf-8-sig", errors="replace").splitlines()
    front_matter = FRONT_MATTER.match("\n".join(lines) + "\n")
    return _parsed(path, front_matter.group(1)) if front_matter else SourceCard()


def _parsed(path: Path, text: str) -> SourceCard:
    try:
        # S506: this loader makes nothing but texts, lists and mappings of texts.
        entries = yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        lines = {key: "".join(forms).strip() for key, *forms in LINE.findall(text)}
        return _incomplete(lines, path, " ".join(str(error).split())[:200])
    if not isinstance(entries, dict):
        return _incomplete({}, path, "its front matter is no mapping of keys")
    return SourceCard({key: entries[key] for key in TAKEN_OVER if _is_entry(entries.get(key))})


def _is_entry(value: object) -> bool:
    if isinstance(value, list):
        return all(isinstance(part, str) for part in value)
    return isinstance(value, str)


def _incomplete(entries: Mapping[str, str], path: Path, why: str) -> SourceCard:
    """A card of which only these entries could be read, with a note that says so."""
    has = "its licence is not taken over"
    if entries:
        has = f"taken over line by line: {', '.join(entries)}"
    note = f"{path}: the model card cannot be read ({why}); {has}: look at the new card before publishing it"
    return SourceCard(entries, (note,))
