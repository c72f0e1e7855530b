"""Every test, effect size, interval, correction and power of the project, and nothing of them elsewhere.

- paired: are paired differences 0?
- clustered: the same where the rows of a document belong together.
- correction: many tests at once.
- power: what a test could have found.
- chance: one plan against random plans.

scipy and statsmodels do the work. Input that cannot be tested gives nan and a reason.
"""

from validate.statistics.chance import normal_p, normality_p, permutation_p, standardized_effect
from validate.statistics.clustered import (
    Interval,
    clustered_interval,
    clustered_p,
    clustered_share,
    resamples_for,
)
from validate.statistics.correction import Correction, corrected
from validate.statistics.json_number import number
from validate.statistics.paired import (
    Association,
    Size,
    Test,
    cohens_d,
    mcnemar,
    paired_t,
    share_positive,
    spearman_within,
    wilcoxon,
)
from validate.statistics.power import (
    POWER,
    documents_needed,
    needed_n,
    random_plans_needed,
    smallest_detectable,
    smallest_detectable_d,
)

__all__ = [
    "POWER",
    "Association",
    "Correction",
    "Interval",
    "Size",
    "Test",
    "clustered_interval",
    "clustered_p",
    "clustered_share",
    "cohens_d",
    "corrected",
    "documents_needed",
    "mcnemar",
    "needed_n",
    "normal_p",
    "normality_p",
    "number",
    "paired_t",
    "permutation_p",
    "random_plans_needed",
    "resamples_for",
    "share_positive",
    "smallest_detectable",
    "smallest_detectable_d",
    "spearman_within",
    "standardized_effect",
    "wilcoxon",
]
