"""Floats for JSON, which has neither nan nor infinity."""

import math


def number(value: float) -> float | None:
    """Return a finite value as it is, and None (JSON null) for nan and infinities."""
    return value if math.isfinite(value) else None
