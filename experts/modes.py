"""The two axes of an intervention: what removal means, and where it happens.

Definitions: docs/methods.md, 1.3.
"""

from enum import StrEnum


class Mode(StrEnum):
    """What "removed" means for a token whose expert e is taken away."""

    ZERO = "zero"
    """g_e := 0, the other gate weights unchanged (arXiv 2606.10703, 2606.03780)."""
    RENORMALIZE = "renormalize"
    """g_e := 0, the remaining gate weights rescaled to the same sum (CEI, arXiv 2604.14246)."""
    REROUTE = "reroute"
    """The router cannot choose e; the next expert enters. What pruning does."""
    MEAN = "mean"
    """e's output is replaced by its mean output (MoNE, arXiv 2507.00390)."""


class Scope(StrEnum):
    """Where an expert is removed, and what is read."""

    POSITION = "position"
    """At position t only; the next token at t is read."""
    SEQUENCE = "sequence"
    """At every position of the window; the next token at each t is read."""
    CORPUS = "corpus"
    """At every token; the mean over the window is read."""
