"""The cells of a token-level audit: one (layer, criterion), first tested and then judged in its family."""

from dataclasses import dataclass

from validate.expert_pairs import CONTROLS
from validate.results import CellJson
from validate.statistics import number


@dataclass(frozen=True, kw_only=True)
class Tested:
    """One (layer, criterion), measured and not judged yet. All p are two-sided and not corrected.

    Attributes:
        layer: decoder layer index
        criterion: criterion or control
        n: positions
        mean_high: mean outcome of removing the high-ranked expert, nats
        mean_low: mean outcome of removing the low-ranked expert, nats
        d: Cohen's d of the paired differences
        d_low: lower end of the 95 % interval of d
        d_high: upper end of the 95 % interval of d
        p_t: of the paired t-test
        p_wilcoxon: of the signed rank test
        p_clustered: of the sign flips of whole documents; nan where the rows do not name them
        low: lower end of the 95 % interval of the mean difference over documents, nats; nan without documents
        high: upper end of it
        documents: how many; None where the rows do not name them
        share_high_larger: share of positions where the high-ranked expert's removal costs more
        reason: why t or Wilcoxon is nan, else empty
    """

    layer: int
    criterion: str
    n: int
    mean_high: float
    mean_low: float
    d: float
    d_low: float
    d_high: float
    p_t: float
    p_wilcoxon: float
    p_clustered: float
    low: float
    high: float
    documents: int | None
    share_high_larger: float
    reason: str

    @property
    def is_control(self) -> bool:
        return self.criterion in CONTROLS


@dataclass(frozen=True, kw_only=True)
class Cell(Tested):
    """The same, judged among all cells of its family.

    Attributes:
        smallest_detectable_d: what the t-test at `alpha` finds with 80 % power; nan where no cell could pass
        needed_n: positions that the t-test at `alpha` needs for the d that was seen; None = more than 10⁹
        alpha: level of one test: α / cells of the family
        passes: both tests hold after Bonferroni, and the high-ranked expert's removal costs more
        inverted: both tests hold, and it costs less: the criterion ranks the wrong way round
        passes_by: the rule of `passes` under each correction
        spearman: mean over positions of ρ(score, effect) inside the active set; nan where it was not computed
    """

    smallest_detectable_d: float
    needed_n: int | None
    alpha: float
    passes: bool
    inverted: bool
    passes_by: dict[str, bool]
    spearman: float

    def to_json(self) -> CellJson:
        return {
            "layer": self.layer,
            "criterion": self.criterion,
            "n": self.n,
            "mean_high": number(self.mean_high),
            "mean_low": number(self.mean_low),
            "d": number(self.d),
            "d_low": number(self.d_low),
            "d_high": number(self.d_high),
            "p_t": number(self.p_t),
            "p_wilcoxon": number(self.p_wilcoxon),
            "p_clustered": number(self.p_clustered),
            "low": number(self.low),
            "high": number(self.high),
            "documents": self.documents,
            "share_high_larger": self.share_high_larger,
            "reason": self.reason,
            "smallest_detectable_d": number(self.smallest_detectable_d),
            "needed_n": self.needed_n,
            "alpha": self.alpha,
            "passes": self.passes,
            "inverted": self.inverted,
            "passes_by": self.passes_by,
            "spearman": number(self.spearman),
        }
