"""ARCHITECTURES.md: one row for every type. `python -m tests.support.architecture_table --write` writes it.

Rows say what the models are; that the logits are bit-equal is what prune/checkpoint/test_breadth.py holds,
type by type, beside the row itself.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import PreTrainedModel

from experts.anatomy import Anatomy, dissect
from experts.effects.instrument import Instrument
from experts.errors import ExciseError
from experts.modes import Scope
from finetune.refit.plans import refit_plans
from finetune.refit.request import Request
from tests.support import architectures, wrappers
from tests.support.inputs import windows
from tests.support.one_by_one import one_by_one
from tests.support.sweeps import losses, random_plans, statistics

TABLE = Path(__file__).resolve().parents[2] / "ARCHITECTURES.md"
COMMAND = "python -m tests.support.architecture_table --write"
TYPES = tuple(architectures.types())
WRAPPERS = tuple(wrappers.OWN)
ALL = (*TYPES, *WRAPPERS)
REFUSED = {
    "diffusion_gemma": "two MoE blocks in one decoder layer",
    "ernie4_5_vl_moe": "two MoE blocks in one decoder layer",
    "inkling_mm_model": "has 9 rows for 8 experts, some for shared or skipped ones",
    "deepseek_v4": (
        "is a table of whole numbers, as routers use that choose experts by token id; it cannot be cut"
    ),
    "inkling_text": "has 9 rows for 8 experts, some for shared or skipped ones",
    "zaya": "has 9 rows for 8 experts, some for shared or skipped ones",
}
HEAD = """# Architectures

Every causal-LM type of transformers {version} that routes through its experts interface, built small with
random weights by its own configuration class: found by structure, calibrated, then restricted = cut =
exported and reloaded, logits bit-equal, with equal counts and with unequal ones (`scope: global`, which
loads by the named class of the library, resized); and as close as rounding to routing with masked logits,
which needs no code of Excise. Routers that know groups have two. Effects at positions (`excise effects`,
`excise audit`) are packed into one forward where that equals plain replay, else every intervention is a
whole forward. Read layer by layer (`memory: {{model: streamed}}`), a model gives the losses of plans and the
statistics of one in memory, bit by bit. The refit (`finetune.refit_experts`) sees what enters the down
projections, and needs an experts' sum that simply adds to the residual stream. {supported} supported,
{refused} refused, none failing.

`tests/prune/checkpoint/test_breadth.py` tries every type and compares its row;
`python -m tests.support.architecture_table --write` writes the table.
`tests/experts/sweep/test_equal.py` compares losses, statistics, effects and greedy rounds of every type with
whole forwards, padded too.

{head}
"""
MULTIMODAL = """
## Multimodal wrappers

Types with a `text_config`, pruned in their language part; towers for images and sound are copied byte for
byte, also where they have experts of their own. All that have experts behind the interface themselves, and
some that wrap a type of the first table. {supported} supported, {refused} refused.

{head}
"""
CANNOT = "cannot be refitted: "
HEADINGS = ("type", "class", "MoE layers", "router", "equal counts", "unequal counts")
MEASURED = ("effects at positions", "layer by layer", "refit")
COLUMNS = f"""\
| {" | ".join((*HEADINGS, *MEASURED))} |
|{" --- |" * len((*HEADINGS, *MEASURED))}"""


def build(model_type: str) -> PreTrainedModel:
    """A small random model of a type, multimodal or not."""
    return (wrappers if model_type in WRAPPERS else architectures).build(model_type)


def refused_row(model_type: str, model: PreTrainedModel, refusal: ExciseError) -> str:
    return f"| `{model_type}` | {type(model).__name__} | | refused: {refusal} | | | | | |"


def supported_row(model_type: str, model: PreTrainedModel, anatomy: Anatomy) -> str:
    """The model is whole: effects are tried on it."""
    shape = anatomy.shape
    router = f"{type(anatomy.layers[0].router).__name__}, top-{shape.top_k}"
    if shape.groups > 1:
        router += f", {shape.groups} groups"
    effects = "packed" if packs(anatomy) else "whole forwards"
    streamed = "bit-equal" if same_bits(anatomy, one_by_one(anatomy)) else "differs"
    cells = (
        f"`{model_type}`",
        type(model).__name__,
        str(len(anatomy.layers)),
        router,
        "bit-equal",
        "bit-equal",
        effects,
        streamed,
        refit(anatomy),
    )
    return f"| {' | '.join(cells)} |"


def packs(anatomy: Anatomy) -> bool:
    """Whether interventions at positions share a forward; asserts that they equal plain replay either way."""
    instrument = Instrument(anatomy)
    instrument.check(torch.from_numpy(windows(1, 16).tokens), Scope.POSITION)
    return instrument.packs


def refit(anatomy: Anatomy) -> str:
    """Whether a plan can be refitted; asserts that every layer comes closer to the whole model."""
    [plan] = random_plans(anatomy, 1)
    try:
        [found] = refit_plans(anatomy, [plan], Request(windows(8, 32), 0.1, 0, batch=4), {plan.digest})
    except ExciseError as refusal:
        return f"refused: {str(refusal).partition(CANNOT)[2]}"
    assert all(layer.after < layer.before for layer in found.layers)
    return "yes"


def same_bits(anatomy: Anatomy, other: Anatomy) -> bool:
    """Whether two ways of visiting a model give the same losses of plans and the same statistics."""
    works = (losses, statistics)
    return all(np.array_equal(work(anatomy), work(other), equal_nan=True) for work in works)


def row(model_type: str) -> str:
    model = build(model_type)
    try:
        anatomy = dissect(model)
    except ExciseError as refusal:
        return refused_row(model_type, model, refusal)
    return supported_row(model_type, model, anatomy)


def document(rows: dict[str, str]) -> str:
    """The whole file."""
    text = ""
    for head, names in ((HEAD, TYPES), (MULTIMODAL, WRAPPERS)):
        refused = sum(name in REFUSED for name in names)
        text += head.format(
            version=transformers.__version__,
            supported=len(names) - refused,
            refused=refused,
            head=COLUMNS,
        )
        text += "\n".join(rows[name] for name in names) + "\n"
    return text


def documented() -> dict[str, str]:
    """The rows that the file has now, by type."""
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    return {line.split("`")[1]: line for line in lines if line.startswith("| `")}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the file instead of printing it")
    write = parser.parse_args(arguments).write
    transformers.logging.set_verbosity_error()
    text = document({name: row(name) for name in ALL})
    if write:
        TABLE.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main(sys.argv[1:])
