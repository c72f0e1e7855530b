"""The running sums of a pass as statistics, and back."""

from collections.abc import Mapping, Sequence

import numpy as np

from criteria.domain_sums import DomainSums
from criteria.layer_sums import SUMMED
from criteria.replacement_sums import NAME
from criteria.statistics import Statistics
from criteria.text.windows import Windows
from experts.arrays import Array


def collected(rows: Sequence[DomainSums], seen: Windows, weights: Mapping[str, Array]) -> Statistics:
    """Return the sums of all layers as statistics of the windows that were seen.

    Args:
        rows: the sums of every MoE layer [L]
        seen: the windows
        weights: norms of the weights by name [L, E] each
    """
    arrays = [row.arrays() for row in rows]
    sums = {name: np.stack([row[name] for row in arrays], axis=1) for name in arrays[0]}  # [D, L, …]
    lengths, domains = seen.mask.sum(axis=1), len(seen.domains)
    tokens = np.bincount(seen.domain, weights=lengths, minlength=domains).astype(np.float64)
    own = np.diag(tokens)
    parts = [
        _statistics({name: values[domain] for name, values in sums.items()}, own[domain], weights, seen)
        for domain in range(domains)
    ]
    if domains == 1:
        return parts[0]
    whole = {
        name: values.max(axis=0) if name == "peak" else values.sum(axis=0) for name, values in sums.items()
    }
    by_name = dict(zip(seen.domains, parts, strict=True))
    return _statistics(whole, tokens, weights, seen, by_name)


def resumed(statistics: Statistics) -> list[dict[str, Array]]:
    """Return what every MoE layer's sums were made of [L], by name [D, …]."""
    parts = list(statistics.parts.values()) or [statistics]
    arrays = [
        {name: getattr(part, name) for name in SUMMED}
        | {f"{NAME}/{form}": sums for form, sums in part.replacement.items()}
        for part in parts
    ]
    layers = range(len(statistics.count))
    return [{name: np.stack([part[name][row] for part in arrays]) for name in arrays[0]} for row in layers]


def _statistics(
    sums: Mapping[str, Array],
    tokens: Array,
    weights: Mapping[str, Array],
    seen: Windows,
    parts: Mapping[str, Statistics] | None = None,
) -> Statistics:
    moments, prefix = sums["moments"], f"{NAME}/"
    return Statistics(
        tokens=tokens,
        moments=moments.reshape(*moments.shape[:2], 3, 3),
        peak=sums["peak"],
        turning=sums["turning"],
        together=sums["together"],
        by_domain=sums["by_domain"],
        router_norm=weights["router_norm"],
        weight_l1=weights["weight_l1"],
        weight_l2=weights["weight_l2"],
        weight_count=weights["weight_count"],
        pair_norms=sums["pair_norms"],
        pair_outputs=sums["pair_outputs"],
        replacement={
            name.removeprefix(prefix): values for name, values in sums.items() if name.startswith(prefix)
        },
        domains=seen.domains,
        parts=parts or {},
    )
