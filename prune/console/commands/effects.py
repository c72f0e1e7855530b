"""`excise effects`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from criteria.text.bos import Bos
from experts.modes import Mode, Scope
from prune.console import show
from prune.console.exits import guarded, waiting
from prune.console.options import Begin, Debug, Dtype, Force, Json, Model, Quiet, Weights

if TYPE_CHECKING:
    from prune.effects.request import Request

Text = Annotated[Path, typer.Option("--text", help="UTF-8 text file; cut into windows from its start.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="The table: NAME.parquet or NAME.csv.")]
Window = Annotated[int, typer.Option("--window", help="Tokens per window.")]
Sequences = Annotated[int, typer.Option("--sequences", help="Windows; 0 = all of the text.")]
Layers = Annotated[
    str | None,
    typer.Option("--layers", help="Decoder layers like 0,2,5 or 0-5; default: all with experts."),
]
Experts = Annotated[
    str | None,
    typer.Option("--experts", help="Expert ids like 0,2,5; default: all (in corpus), all active ones."),
]
Where = Annotated[
    Scope,
    typer.Option("--scope", help="Removed at one position, in the sequence, or in the corpus (means)."),
]
How = Annotated[Mode, typer.Option("--mode", help="What removal means.")]
Precision = Annotated[
    Dtype, typer.Option("--dtype", help="Precision of the model in memory; auto = as stored.")
]
Memory = Annotated[
    Weights,
    typer.Option("--memory", help="All weights in memory or layer by layer; auto = resident where they fit."),
]
Limit = Annotated[
    str,
    typer.Option(
        "--memory-limit", metavar="SIZE", help="Most memory for weights and hidden states, like 24GB."
    ),
]
Spill = Annotated[
    Path | None, typer.Option("--spill", help="Folder for hidden states that do not fit into memory.")
]
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run model code that comes with the checkpoint.")
]


def effects(
    model: Model,
    text: Text,
    output: Output,
    window: Window = 256,
    sequences: Sequences = 0,
    layers: Layers = None,
    experts: Experts = None,
    scope: Where = Scope.POSITION,
    mode: How = Mode.ZERO,
    dtype: Precision = Dtype.AUTO,
    memory: Memory = Weights.AUTO,
    memory_limit: Limit = "",
    spill: Spill = None,
    trust_remote_code: Trust = False,
    bos: Begin = Bos.AUTO,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure what removing each expert costs: the raw table, one row per intervention.

    An interrupted run resumes.
    """

    def work() -> int:
        from prune.effects.request import Request, numbers

        request = Request(
            model=model,
            text=text,
            output=output,
            window=window,
            sequences=sequences,
            layers=numbers("--layers", layers),
            experts=numbers("--experts", experts),
            scope=scope,
            mode=mode,
            dtype=dtype.value,
            trust_remote_code=trust_remote_code,
            force=force,
            bos=bos,
            memory=memory.value,
            memory_limit=memory_limit,
            spill=spill,
        )
        return _run(request, as_json, quiet)

    guarded(work, quiet, debug)


def _run(request: "Request", as_json: bool, quiet: bool) -> int:
    """Measure, or finish measuring; what cannot be measured is refused before torch is loaded."""
    from prune.effects.prepare import prepare_effects

    layout = prepare_effects(request)
    with waiting("loading libraries", quiet):
        from prune.effects.measurement import run
    result = run(request, layout)
    show.print_json(result) if as_json else show.effects(result)
    return 0
