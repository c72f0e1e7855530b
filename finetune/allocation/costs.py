"""What the model costs when one layer alone is cut and refitted: for every layer and some counts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from tqdm import tqdm

from criteria.text.halves import halved
from experts.anatomy import Anatomy
from experts.arrays import Array
from experts.decoder import decoder_layers
from experts.keys import key_of
from experts.memory import free_bytes
from experts.stored_arrays import StoredArrays
from experts.team import deal, undeal
from finetune.allocation.cut import Cut, Judge
from finetune.refit.fewest import check_fewest
from finetune.refit.layers import layer_refit
from finetune.refit.passage import CleanPassage, Passage
from finetune.refit.request import Request
from finetune.refit.result import RefittedLayer

SHARE = 0.25  # of the free memory that the judged windows of cut models may take side by side
VERSION = 1  # raise when other costs come from the same inputs
Tick = Callable[[], object]


@dataclass(frozen=True)
class Costs:
    """Costs of cuts, in nats per token.

    Attributes:
        divergence: KL(unpruned ‖ cut and refitted), by cut [M]; nan = not measured yet
        rise: of the loss [M]
    """

    divergence: Array
    rise: Array


def key_of_cuts(cuts: Sequence[Cut], request: Request, model: Sequence[str]) -> str:
    """Identity of all that costs depend on. model: its identity."""
    return key_of("allocation", VERSION, request.key_on(model), [(cut.row, cut.kept) for cut in cuts])


def measure_cuts(
    anatomy: Anatomy, cuts: Sequence[Cut], request: Request, partial: StoredArrays | None = None
) -> Costs:
    """Measure cuts; each layer is refitted on one half of the text and judged on the other.

    Args:
        anatomy: the unpruned model
        cuts: in the order of their layers [M]
        request: the text, and how layers are refitted; they are not trained
        partial: what an interrupted run measured, and takes what this one does

    Raises:
        ExciseError: there are too few windows for two halves, or a layer cannot be refitted.
    """
    check_fewest(len(request.text), "refitted")
    partial = partial or StoredArrays()
    found = partial.read() or {name: np.full(len(cuts), np.nan) for name in ("divergence", "rise")}
    missing = [place for place in range(len(cuts)) if np.isnan(found["divergence"][place])]
    work = [work_of(anatomy, cut) for cut in cuts]
    done = sum(work) - sum(work[place] for place in missing)
    with tqdm(total=sum(work), initial=done, desc="allocation", unit="layer", delay=2, leave=False) as bar:
        for group in _groups(anatomy, cuts, missing, request):
            costs = _in_team(anatomy, [cuts[place] for place in group], request, bar.update)
            found["divergence"][group], found["rise"][group] = np.array(costs).T
            partial.write(found)
    return Costs(found["divergence"], found["rise"])


def _in_team(
    anatomy: Anatomy, cuts: Sequence[Cut], request: Request, tick: Tick
) -> list[tuple[float, float]]:
    """KL and rise of cuts, by all processes that share the model."""
    if anatomy.team.size == 1:
        return costs_of(anatomy, cuts, request, tick)
    given = [(hand, request) for hand in deal(cuts, anatomy.team.size)]
    found = undeal(anatomy.team.map(anatomy, costs_of, given))
    for _ in range(sum(work_of(anatomy, cut) for cut in cuts)):
        tick()
    return found


def work_of(anatomy: Anatomy, cut: Cut) -> int:
    """How often a cut is worked on: its layer is refitted, then it and all above are computed."""
    return 1 + len(decoder_layers(anatomy)) - anatomy.layers[cut.row].index


def _groups(
    anatomy: Anatomy, cuts: Sequence[Cut], places: Sequence[int], request: Request
) -> Iterator[list[int]]:
    """Places of cuts that are measured side by side.

    Of one layer; or, where layers are read from disk, as many as fit into memory.
    """
    group: list[int] = []
    most = _at_most(anatomy, request)
    for place in places:
        other = group and not anatomy.weights.streamed and cuts[place].row != cuts[group[-1]].row
        if other or len(group) == most:
            yield group
            group = []
        group.append(place)
    if group:
        yield group


def _at_most(anatomy: Anatomy, request: Request) -> int:
    """How many cuts all processes can take to the top side by side."""
    _, judged = halved(request.text)
    width = anatomy.model.config.get_text_config().hidden_size
    each = judged.tokens.size * width * anatomy.model.dtype.itemsize
    return anatomy.team.size * max(1, int(SHARE * free_bytes(anatomy.device) / each))


@torch.no_grad()
def costs_of(
    anatomy: Anatomy, cuts: Sequence[Cut], request: Request, tick: Tick = lambda: None
) -> list[tuple[float, float]]:
    """KL and rise of the loss of cuts, in one way through the layers.

    Args:
        anatomy: the unpruned model
        cuts: in the order of their layers [M]
        request: the text, and how layers are refitted
        tick: is called as often as `work_of` says
    """
    fitted, judged = halved(request.text)
    batch = request.batch
    clean, judge = CleanPassage(anatomy, fitted, batch), Judge(anatomy, judged, request.batch)
    by_layer: dict[int, list[Cut]] = {}
    for cut in cuts:
        by_layer.setdefault(anatomy.layers[cut.row].index, []).append(cut)
    for span in anatomy.weights.spans():
        with anatomy.weights.loaded(span):
            for layer in span:
                entering = clean.entering
                for cut in by_layer.get(layer, []):
                    passage = Passage(anatomy, cut.plan(anatomy.shape), fitted, batch, clean, entering)
                    judge.bear(cut, _refit(passage, cut, request))
                    tick()
                if layer < max(by_layer):
                    clean.go(layer)
                judge.pass_through(layer)
                for _ in judge.rising:
                    tick()
    return [judge.costs(one) for one in judge.rising]


def _refit(passage: Passage, cut: Cut, request: Request) -> RefittedLayer:
    """The cut layer, which is not trained: that would cost many times its least squares."""
    return layer_refit(passage, cut.row, replace(request, local=None)).run(last=True)
