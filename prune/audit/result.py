"""The content of audit.json, which `excise audit --json` prints."""

from typing import NotRequired, TypedDict, final

from prune.results import ModelJson, TextsJson
from validate.results import AuditJson, CurveJson


class ProgressiveJson(TypedDict):
    """Curves of progressive removal."""

    cliff: float  # nats
    windows: int  # validation windows, of removal from the layer
    positions: int  # per layer, of removal at the token
    draws: int  # random orders
    modes: dict[str, str]  # what removal means, `at the token` and `from the layer`
    curves: list[CurveJson]  # layer by layer


@final
class FileAudit(AuditJson):
    """What `excise audit --positions` prints."""

    file: str  # the CSV file
    notes: list[str]  # what a reader has to know of it


@final
class AuditResult(AuditJson):
    """audit.json."""

    scope: str  # of a removal, `position` or `sequence`
    mode: str  # what removal means
    formulas: dict[str, str]  # criterion -> its score
    text: TextsJson  # what the criteria and the audit saw
    model: ModelJson  # which model was audited
    notes: list[str]  # what a reader has to know of the criteria
    run: str  # the folder of the audit
    progressive: NotRequired[ProgressiveJson]  # curves, where the recipe asks for them
