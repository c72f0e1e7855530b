"""What a new checkpoint takes over from the source's model card: its licence and languages. No torch.

The texts are taken as they are written: YAML's own types would make `language: no` a truth value and `1.10` a number.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

LONGEST = 2**20  # bytes that are read of a card; its front matter comes first
FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\n(.*?)\n---[ \t]*(?:\n|\Z)", re.DOTALL)
TAKEN_OVER = ("license", "license_name", "license_link", "language")
LINE = re.compile(
    rf"^({'|'.join(TAKEN_OVER)}):[ \t]*(?:'([^'\n]*)'|\"([^\"\n]*)\"|([^\s\[{{&*!|>'\"#][^#\n]*))",
    re.MULTILINE,
)
Entry = str | list[str]


@dataclass(frozen=True)
class SourceCard:
    """entries: of the front matter, as written; notes: why some may be missing."""

    entries: dict[str, Entry] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_source_card(folder: Path) -> SourceCard:
    """Of the README.md in a checkpoint's folder. One that cannot be read costs its entries, never the export."""
    path = next(
        (folder / name for name in ("README.md", "readme.md", "Readme.md") if (folder / name).exists()),
        folder / "README.md",
    )
    try:
        with path.open("rb") as file:
            raw = file.read(LONGEST)
    except FileNotFoundError:
        return SourceCard()
    except OSError as error:
        return _without({}, path, error.strerror or str(error))
    found = FRONT_MATTER.match("\n".join(raw.decode("utf-8-sig", errors="replace").splitlines()) + "\n")
    return _parsed(path, found.group(1)) if found else SourceCard()


def _parsed(path: Path, text: str) -> SourceCard:
    try:
        entries = yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506 - makes texts, lists and mappings of texts only
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        lines = {key: "".join(forms) for key, *forms in LINE.findall(text)}
        return _without(lines, path, " ".join(str(error).split())[:200])
    if not isinstance(entries, dict):
        return _without({}, path, "its front matter is no mapping of keys")
    return SourceCard({key: entries[key] for key in TAKEN_OVER if _is_text(entries.get(key))})


def _is_text(value: object) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(part, str) for part in value)
    )


def _without(entries: dict[str, str], path: Path, why: str) -> SourceCard:
    found = {key: value.strip() for key, value in entries.items()}
    has = f"taken over line by line: {', '.join(found)}" if found else "its licence is not taken over"
    return SourceCard(
        dict(found),
        (f"{path}: the model card cannot be read ({why}); {has}: look at the new card before publishing it",),
    )
