"""`excise --version`."""

import typer

from experts.keys import version_of

SHOWN = ("torch", "transformers")


def version_line() -> str:
    """Excise and the two libraries that a result depends on most; none is imported."""
    libraries = ", ".join(f"{name} {version_of(name)}" for name in SHOWN)
    return f"excise {version_of('excise')} ({libraries})"


def print_version(asked: bool) -> None:
    """Answer `--version` and end."""
    if asked:
        typer.echo(version_line())
        raise typer.Exit
