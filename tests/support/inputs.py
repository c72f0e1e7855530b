"""Windows of random tokens and plans for the tiny models of eight experts."""

import numpy as np

from criteria.text.windows import Windows
from experts.plan import Plan


def windows(count: int = 6, length: int = 24, domains: int = 2, seed: int = 0) -> Windows:
    """Random byte tokens in three documents and alternating domains."""
    tokens = np.random.default_rng(seed).integers(0, 256, (count, length))
    rows = np.arange(count)
    return Windows(
        tokens,
        np.ones_like(tokens, bool),
        rows % 3,
        rows % domains,
        ("a", "b", "c"),
        ("x", "y", "z")[:domains],
    )


def uniform_plan(layers: tuple[int, ...], kept: tuple[int, ...] = (0, 2, 3, 5, 6, 7)) -> Plan:
    return Plan(8, dict.fromkeys(layers, kept))


def unequal_plan(layers: tuple[int, ...]) -> Plan:
    """Other counts in neighbouring layers; even over two router groups (0..3 and 4..7)."""
    choices = ((0, 2, 3, 5, 6, 7), (1, 2, 4, 6))
    return Plan(8, {layer: choices[i % 2] for i, layer in enumerate(layers)})
