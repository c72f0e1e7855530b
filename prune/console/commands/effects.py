"""`excise effects`."""

from pathlib import Path
from typing import Annotated

import typer

from criteria.text.bos import Bos
from experts.modes import Mode, Scope
from prune.console import show
from prune.console.exits import guarded, waiting
from prune.console.options import Begin, Debug, Dtype, Force, Json, Model, Quiet


def effects(
    model: Model,
    text: Annotated[Path, typer.Option("--text", help="UTF-8 text file; cut into windows from its start.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The table: NAME.parquet or NAME.csv.")],
    window: Annotated[int, typer.Option("--window", help="Tokens per window.")] = 256,
    sequences: Annotated[int, typer.Option("--sequences", help="Windows; 0 = all of the text.")] = 0,
    layers: Annotated[
        str | None,
        typer.Option("--layers", help="Decoder layers like 0,2,5 or 0-5; default: all with experts."),
    ] = None,
    experts: Annotated[
        str | None,
        typer.Option("--experts", help="Expert ids like 0,2,5; default: all (in corpus), all active ones."),
    ] = None,
    scope: Annotated[
        Scope,
        typer.Option("--scope", help="Removed at one position, in the sequence, or in the corpus (means)."),
    ] = Scope.POSITION,
    mode: Annotated[Mode, typer.Option("--mode", help="What removal means.")] = Mode.ZERO,
    dtype: Annotated[
        Dtype, typer.Option("--dtype", help="Precision of the model in memory; auto = as stored.")
    ] = Dtype.AUTO,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run model code that comes with the checkpoint.")
    ] = False,
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
        from prune.effects.prepare import prepare_effects
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
        )
        layout = prepare_effects(request)  # refused before torch is loaded
        with waiting("loading libraries", quiet):
            from prune.effects.measurement import run
        result = run(request, layout)
        show.print_json(result) if as_json else show.effects(result)
        return 0

    guarded(work, quiet, debug)
