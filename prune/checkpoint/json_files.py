"""JSON as it is written into a checkpoint's folder."""

import json
from pathlib import Path


def write_checkpoint_json(path: Path, data: object) -> None:
    """Write an indented JSON file. Its folder is not in its place yet, so it need not appear at once."""
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
