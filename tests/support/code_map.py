"""The map of the code in docs/development.md, from the first line of every file's docstring.

python -m tests.support.code_map --write
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "development.md"
BEGIN, END = "<!-- map -->", "<!-- end of map -->"
PACKAGES = ("experts", "criteria", "validate", "finetune", "prune", "benchmarks")


def first_line(file: Path) -> str:
    """What a file is about."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return text.split("\n\n")[0].replace("\n", " ").removesuffix(".").replace("|", "\\|")


def section(folder: Path) -> str:
    """A folder, and a line per file in it."""
    files = [file for file in sorted(folder.glob("*.py")) if file.name != "__init__.py"]
    lines = [f"| `{file.relative_to(ROOT)}` | {first_line(file)} |" for file in files]
    about = first_line(folder / "__init__.py")
    name = f"**`{folder.relative_to(ROOT)}/`** {about if about.endswith('?') else about + '.'}"
    return "\n".join([name, "", "| file | what |", "| --- | --- |", *lines]) if lines else name


def folders() -> list[Path]:
    """Packages from the bottom up, each before the folders in it."""
    found = []
    for package in PACKAGES:
        inside = sorted(init.parent for init in (ROOT / package).rglob("__init__.py"))
        found += inside
    return found


def code_map() -> str:
    """All sections."""
    return "\n\n".join(section(folder) for folder in folders())


def with_map(page: str) -> str:
    """The page with the map as the code has it."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{code_map()}\n\n{END}{after}"


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(with_map(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(code_map())
