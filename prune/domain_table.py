"""Plans by domain of the held-out text: a table and sentences, for `excise prune` and `excise compare`."""

from collections.abc import Iterator, Sequence

from prune.tables import Table, plain, probability, signed, spread, verdict
from validate.conclusion import too_few
from validate.results import CostJson, EvidenceJson

HEAD = (
    "criterion",
    "scope",
    "fraction",
    "domain",
    "ΔCE [95 %]",
    "random (mean ± sd)",
    "reversed",
    "p good, bad",
    "after Holm over domains",
    "detectable",
    "verdict",
)


def domain_tables(plans: Sequence[EvidenceJson]) -> Iterator[Table]:
    """Yield the plans by the loss in each domain, worst domain first; no table where there is one domain."""
    rows = [_row(plan, domain) for plan in plans for domain in plan["domains"]]
    if rows:
        yield Table("Loss by domain of the held-out text, worst domain first", HEAD, rows)


def conclusions(plans: Sequence[EvidenceJson]) -> list[str]:
    """Return the verdict on each plan in a sentence; none where there is one domain."""
    return [plan["conclusion"] for plan in plans if plan["domains"]]


def _row(plan: EvidenceJson, domain: CostJson) -> tuple[str, ...]:
    low, high = domain["delta_interval"]
    detectable = domain["smallest_detectable"]
    return (
        plan["criterion"],
        plan["scope"],
        f"{plan['fraction']:g}",
        domain["name"],
        f"{signed(domain['delta'])} [{signed(low, 3)}, {signed(high, 3)}]",
        spread(domain["random"]["mean"], domain["random"]["sd"]),
        signed(domain["reversed_delta"]),
        f"{probability(domain['p'])}, {probability(domain['p_worse'])}",
        f"{probability(domain['p_corrected'])}, {probability(domain['p_worse_corrected'])}",
        "none" if detectable is None else plain(detectable, 3),
        _verdict(plan, domain),
    )


def domain_evidence(plan: EvidenceJson) -> Iterator[str]:
    """Yield what the verdict in each domain rests on, a line each, worst domain first."""
    for domain in plan["domains"]:
        low, high = domain["interval"]
        yield (
            f"  - in {domain['name']}, unpruned {plain(domain['full'])}: {_verdict(plan, domain)}. "
            f"Advantage {signed(domain['random']['mean'] - domain['delta'])} nats, "
            f"95 % interval [{signed(low)}, {signed(high)}] over {domain['clusters']} documents; "
            f"effect {signed(domain['effect'], 2)} sd; as good by chance: p = {probability(domain['p'], 4)}, "
            f"after Holm {probability(domain['p_corrected'], 4)}; as bad: "
            f"{probability(domain['p_worse'], 4)}, {probability(domain['p_worse_corrected'], 4)}."
        )


def _verdict(plan: EvidenceJson, domain: CostJson) -> str:
    """With its caveats; a verdict that no result could have changed says so."""
    if too_few(plan["domains"]):
        return f"{domain['verdict']} (too few plans)"
    return verdict(domain)
