"""What a Markdown page holds that can be checked: headings, links, code spans, fenced blocks."""

import re
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^(?P<indent>\s*)(?P<ticks>```+)(?P<language>\w*)\s*$")
MARK = re.compile(r"^\s*<!-- not run: (?P<reason>.+) -->$")
HEADING = re.compile(r"^#{1,6} (?P<text>.+?)\s*$")
LINK = re.compile(r"\]\((?P<target>[^()\s]+)\)")
SPAN = re.compile(r"`(?P<code>[^`]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: the file it is in
        line: number of its first fence
        language: what the fence names; empty without
        text: its lines, without the indentation of the fence
        reason: why it is not run, from the comment before it; empty without one
    """

    page: Path
    line: int
    language: str
    text: str
    reason: str

    @property
    def place(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The command lines of a shell block; in a transcript those behind `$ `."""
        lines = self.text.splitlines()
        prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        return prompted or [line for line in lines if line and not line.startswith("#")]

    @property
    def output(self) -> list[str]:
        """The lines of a transcript that a command printed."""
        lines = self.text.splitlines()
        shown = any(line.startswith("$ ") for line in lines)
        return [line for line in lines if shown and line.strip() and not line.startswith("$ ")]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    found, number = [], 0
    while number < len(lines):
        fence = FENCE.match(lines[number])
        if fence is None:
            number += 1
            continue
        end = next(i for i in range(number + 1, len(lines)) if lines[i].strip() == fence["ticks"])
        inside = [line.removeprefix(fence["indent"]) for line in lines[number + 1 : end]]
        mark = MARK.match(lines[number - 1]) if number else None
        reason = mark["reason"] if mark else ""
        found.append(Block(page, number + 1, fence["language"], "\n".join(inside), reason))
        number = end + 1
    return found


def prose(page: Path) -> list[str]:
    """The lines outside fenced blocks."""
    kept, ticks = [], ""
    for line in page.read_text(encoding="utf-8").splitlines():
        fence = FENCE.match(line)
        if not ticks and fence:
            ticks = fence["ticks"]
        elif ticks and line.strip() == ticks:
            ticks = ""
        elif not ticks:
            kept.append(line)
    return kept


def links(page: Path) -> list[str]:
    """Targets of all links and pictures."""
    return [link["target"] for line in prose(page) for link in LINK.finditer(SPAN.sub("", line))]


def spans(page: Path) -> list[str]:
    """Code spans outside blocks; a bar that a table escapes is a bar."""
    return [span["code"].replace("\\|", "|") for line in prose(page) for span in SPAN.finditer(line)]


def anchors(page: Path) -> set[str]:
    """What can stand behind # in a link to a page, as GitHub names its headings."""
    found: set[str] = set()
    for line in prose(page):
        if heading := HEADING.match(line):
            name, again = slug(heading["text"]), 1
            while name in found:
                name, again = f"{slug(heading['text'])}-{again}", again + 1
            found.add(name)
    return found


def slug(heading: str) -> str:
    """Lower case, without punctuation, spaces as hyphens."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
