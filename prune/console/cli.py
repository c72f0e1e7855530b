"""`excise`: the commands, each in a file of its own. Results go to stdout, everything else to stderr."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from prune.console.commands.audit import audit
from prune.console.commands.compare import compare
from prune.console.commands.criteria import criteria
from prune.console.commands.doctor import doctor
from prune.console.commands.effects import effects
from prune.console.commands.export import export
from prune.console.commands.finetune import finetune
from prune.console.commands.init import init
from prune.console.commands.inspect import inspect
from prune.console.commands.prune import prune
from prune.console.commands.sample import sample
from prune.console.version import print_version

COMMANDS = (prune, compare, audit, finetune, effects, export, inspect, criteria, init, sample, doctor)

# What pydantic, which typer checks values with, says of them, and what a user is told.
WORDS = {
    "Value error, ": "",
    "Input should be greater than or equal to": "has to be at least",
    "Input should be less than or equal to": "has to be at most",
    "Input should be": "has to be",
}


class Commands(TyperGroup):
    """The group of all commands."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            for theirs, ours in WORDS.items():
                error.message = error.message.replace(theirs, ours)
            raise


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog=(
        "Calibrations and experiments are kept for all runs in EXCISE_CACHE, by default ~/.cache/excise. "
        "Exit codes: 0 done, 1 error, 2 usage, 3 the recipe asked to stop on this verdict."
    ),
)


@app.callback()
def excise(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=print_version),
    ] = False,
) -> None:
    """Excise prunes the experts of mixture-of-experts language models.

    It tests, by intervention, that the ranking it used beats chance.
    """


for command in COMMANDS:
    app.command(command.__name__)(command)
