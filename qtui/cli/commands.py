"""Every command by its name: the one list that the command line and its help are made from.

A command is one file here, with a function whose parameters are `typer` options, and its line in
`COMMANDS`. A plugin calls `register_command`. The function is imported when the command is used,
or listed by ``--help``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from typing import Annotated, NamedTuple, cast

import typer

from engine.plugins import load_plugins, resolve
from qtui.cli.progress import put


class Command(NamedTuple):
    """A command of ``qtui``."""

    name: str
    function: str
    """``module:function``; its docstring is the help, its first line the line in ``--help``."""
    hidden: bool = False
    """Whether ``--help`` leaves it out."""


OPEN = Command("open", "qtui.cli.interface:open_model", hidden=True)
"""What ``qtui MODEL`` stands for."""
COMMANDS = (
    OPEN,
    Command("demo", "qtui.cli.interface:demo"),
    Command("triage", "qtui.cli.triage:triage"),
    Command("sweep", "qtui.cli.sweep:sweep"),
    Command("eval", "qtui.cli.evaluate:evaluate"),
    Command("export", "qtui.cli.export:export"),
    Command("doctor", "qtui.cli.doctor:doctor"),
)
PLANNED = ("diagnose", "plan", "report", "compare", "sessions", "attach", "stop")
"""Names kept for commands to come, so that they are not taken for a MODEL."""

_registered: dict[str, Command] = {}


def register_command(name: str, function: str) -> None:
    """Add a command, from a plugin.

    Args:
        name: what is typed after ``qtui``.
        function: ``module:function``.

    Raises:
        ValueError: there is such a command already.
    """
    if name in {command.name for command in COMMANDS} | _registered.keys():
        raise ValueError(f"there is a command {name!r} already: choose another name")
    _registered[name] = Command(name, function)


def all_commands() -> list[Command]:
    """Every command, those of plugins last.

    Raises:
        EngineError: a plugin cannot be loaded.
    """
    load_plugins()
    return [*COMMANDS, *_registered.values()]


def find_command(word: str) -> Command | None:
    """The command of a first argument; None where that is a MODEL or an option.

    Plugins are looked for only where the word may be a command of theirs.

    Raises:
        EngineError: a plugin cannot be loaded.
    """
    for command in COMMANDS:
        if command.name == word:
            return command
    if not word or word.startswith("-") or os.sep in word or os.path.exists(word):
        return None
    return next((command for command in all_commands() if command.name == word), None)


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

    `qtui MODEL` opens the terminal interface on a folder or a hub id, `qtui demo` on the bundled
    checkpoint. `qtui COMMAND --help` lists a command's options.
    """
