"""`causal_swaps`: a cheap ranking's plan, changed by swaps that lower the true KL (docs/methods.md 1.9)."""

import numpy as np

from criteria.experiment_context import ExperimentContext
from criteria.swap_search import SwapSearch
from experts.arrays import Array
from experts.notes import tell
from experts.sweep.progress import bar_around_sweeps


def swaps(
    context: ExperimentContext, start: str, shortlist: int, passes: int, windows: int
) -> dict[str, Array]:
    """Begin with the plan of a cheap ranking, and swap kept for removed experts.

    causal_swaps: min KL(unpruned ‖ pruned). A swap is accepted if the KL of the whole pruned model falls in
    both halves of the text: a gain in one half alone is taken for chance. So the KL of the result is never
    above that of the start on this text.

    Args:
        context: model, text and budget
        start: criterion of observed statistics that the plan at the beginning, and the shortlists, are of
        shortlist: swaps measured per pass: of every layer in scope layer, of the model in scope global
        passes: passes over the layers at most; it ends before where nothing is left to measure
        windows: how many windows are used; 0 = all

    Returns:
        `score` [L, E]: experts that are kept above all others, in the order of the ranking.
        `trace` [swaps, 5]: pass, row and expert that came back, row and expert that went.
        `divergence` [1 + swaps, 2]: KL in nats per token on both halves, before and after every swap.

    Raises:
        ExciseError: there are fewer than two windows, or a KL is not finite.
    """
    search = SwapSearch(context, start, windows)
    with bar_around_sweeps(context.anatomy, "swaps", "pass", passes, search.passes) as bar:
        while search.passes < passes and search.pass_over(shortlist):
            bar.update()
    if search.divergence:
        first, last = (np.mean(halves) for halves in (search.divergence[0], search.divergence[-1]))
        what = f"{len(search.trace)} swaps in {search.passes} passes, {search.measured} measured sets"
        tell(f"causal_swaps: KL {first:.4g} at the start, {last:.4g} after {what}")
    return {
        "score": search.score(),
        "trace": np.array(search.trace).reshape(-1, 5),
        "divergence": np.array(search.divergence).reshape(-1, 2),
    }
