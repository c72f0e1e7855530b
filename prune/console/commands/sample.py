"""`excise sample`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from criteria.text.bos import Bos
from criteria.text.sampled.settings import Start
from prune.console import show
from prune.console.exits import guarded, waiting
from prune.console.options import Begin, Debug, Dtype, Force, Json, Model, Quiet

if TYPE_CHECKING:
    from prune.sample.request import Request

Output = Annotated[Path, typer.Option("--output", "-o", help="The file of samples, NAME.jsonl.")]
Windows = Annotated[int, typer.Option("--windows", min=1, help="Windows.")]
Length = Annotated[int, typer.Option("--length", min=2, help="Tokens per window.")]
Temperature = Annotated[
    float, typer.Option("--temperature", help="Of the softmax; 1 = the model's own probabilities.")
]
First = Annotated[
    Start,
    typer.Option(
        "--start",
        help="A window begins with any token, the token for the beginning, or the chat template up to what "
        "the user says.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the windows.")]
Precision = Annotated[
    Dtype, typer.Option("--dtype", help="Precision of the model in memory; auto = as stored.")
]
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run model code that comes with the checkpoint.")
]


def sample(
    model: Model,
    output: Output,
    windows: Windows = 128,
    length: Length = 512,
    temperature: Temperature = 1.0,
    start: First = Start.RANDOM,
    seed: Seed = 0,
    bos: Begin = Bos.AUTO,
    dtype: Precision = Dtype.AUTO,
    trust_remote_code: Trust = False,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Let a model write text of its own into a file, to calibrate on wherever it is pruned.

    An interrupted run resumes.
    """

    def work() -> int:
        from prune.sample.request import Request

        request = Request(
            model=model,
            output=output,
            windows=windows,
            length=length,
            temperature=temperature,
            start=start,
            seed=seed,
            bos=bos,
            dtype=dtype.value,
            trust_remote_code=trust_remote_code,
            force=force,
        )
        return _run(request, as_json, quiet)

    guarded(work, quiet, debug)


def _run(request: "Request", as_json: bool, quiet: bool) -> int:
    """Draw and write; what cannot be drawn is refused before torch is loaded."""
    from prune.sample.request import prepare_sample

    layout = prepare_sample(request)
    with waiting("loading libraries", quiet):
        from prune.sample.sampling import run
    result = run(request, layout)
    show.print_json(result) if as_json else show.samples(result)
    return 0
