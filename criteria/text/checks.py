"""What users are told of windows that were cut: too few, several times the same, or without text."""

from collections.abc import Callable

import numpy as np

from criteria.text.cutting import Cutter, Window
from criteria.text.rows import RowText
from criteria.text.windows import Windows
from experts.errors import ExciseError


def note_repeats(windows: Windows, say: Callable[[str], None]) -> None:
    """Note windows that hold the same text: tests count them as if they were independent."""
    _, first = np.unique(windows.tokens, axis=0, return_index=True)
    if len(first) == len(windows):
        return
    repeated = min(set(range(len(windows))) - set(first.tolist()))
    name = windows.documents[windows.document[repeated]]
    count = f"{len(windows) - len(first)} of {len(windows)} windows"
    say(f"data: {count} hold the same text as another one (the first in {name}); is a text there twice?")


def check_content(what: str, windows: list[Window], cutter: Cutter, say: Callable[[str], None]) -> None:
    """Refuse windows that hold nothing but special tokens; note them where others hold text."""
    special = set(cutter.tokenizer.all_special_ids)
    start = cutter.length - cutter.room  # behind the token for the beginning
    bodies = [(window.document, set(window.tokens[start:].tolist())) for window in windows]
    hollow = [(document, body) for document, body in bodies if body <= special]
    if not hollow:
        return
    document, body = hollow[0]
    tokens = cutter.tokenizer.convert_ids_to_tokens(sorted(body))
    kind = f"the special token {tokens[0]}" if len(tokens) == 1 else f"special tokens ({', '.join(tokens)})"
    holds = f"{len(hollow)} of {len(windows)} windows hold nothing but {kind} (the first in {document})"
    if len(hollow) == len(windows):
        raise ExciseError(f"{what}: {holds}; is this the tokenizer of the model, and the right text?")
    say(f"{what}: {holds}")


def shortage(available: int, wanted: int, cutter: Cutter, row_text: RowText) -> str:
    """Say why a source has fewer windows than are wanted, and what helps."""
    length = cutter.length
    if available:
        asked = f"{wanted} windows of {length} tokens asked, the text has {available}"
        return f"{asked}; lower sequences or length, or add text"
    if row_text.seen and row_text.seen == row_text.blank:
        return f"there is no text, its {row_text.seen:,} rows are null or empty; name another field"
    if not cutter.tokens:
        return "there is no text; add some"
    has = f"the text ({cutter.tokens:,} tokens)"
    return f"{has} is shorter than one window of {length} tokens; lower length or add text"
