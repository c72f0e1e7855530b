"""What a check of the instrument is, and what a failed one means."""

from dataclasses import dataclass

from experts.errors import ExciseError
from validate.results import CheckJson


@dataclass(frozen=True)
class Check:
    """One check of the instrument.

    Attributes:
        name: its number and what must hold
        passed: whether it held
        evidence: the numbers
    """

    name: str
    passed: bool
    evidence: str

    def to_json(self) -> CheckJson:
        return {"name": self.name, "passed": self.passed, "evidence": self.evidence}


def require(checks: list[Check]) -> None:
    """Stop at the first failed check.

    Raises:
        ExciseError: that names the check and its numbers.
    """
    for check in checks:
        if not check.passed:
            what = f"the instrument failed its check {check.name!r}: {check.evidence}"
            raise ExciseError(f"{what}; no result can be trusted, please report it")
