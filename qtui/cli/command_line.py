"""The `typer` application of some commands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Annotated, cast

import typer

from engine.plugins import resolve
from qtui.cli.commands import Command
from qtui.cli.progress import put


def command_line(of: Iterable[Command]) -> typer.Typer:
    """A `typer` application of these commands."""
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_top)
    for command in of:
        function = cast(Callable[..., None], resolve(command.function))
        app.command(command.name, hidden=command.hidden)(function)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        put(sys.stdout, f"qtui {version('qtui')}\n")
        raise typer.Exit


def _top(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="print the version"),
    ] = False,
) -> None:
    """Which layers break when a checkpoint is quantised, by how much, and why.

    `qtui MODEL` opens the terminal interface on a folder, a GGUF file or a hub id, `qtui demo` on
    the bundled checkpoint. `qtui COMMAND --help` lists a command's options.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the checkpoint or a text cannot be read, 4 out of
    memory, 5 not feasible (as a format that an export target cannot store), 130 interrupted.
    """
