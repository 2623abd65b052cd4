"""Every command by its name: the one list that the command line and its help are made from.

A command is one file here, with a function whose parameters are `typer` options, and its line in
`COMMANDS`. A plugin calls `register_command`. The function is imported when the command is used,
or listed by ``--help``. This module imports nothing heavy: plugins are loaded by the engine too.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from engine.plugins import load_plugins


class Command(NamedTuple):
    """A command of ``qtui``."""

    name: str
    function: str
    """``module:function``; its docstring is the help, its first line the line in ``--help``."""
    hidden: bool = False
    """Whether ``--help`` leaves it out."""


OPEN = Command("open", "qtui.cli.interface:open_model", hidden=True)
"""The command behind ``qtui MODEL``."""
COMMANDS = (
    OPEN,
    Command("demo", "qtui.cli.interface:demo"),
    Command("triage", "qtui.cli.triage:triage"),
    Command("sweep", "qtui.cli.sweep:sweep"),
    Command("eval", "qtui.cli.evaluate:evaluate"),
    Command("diagnose", "qtui.cli.diagnose:diagnose"),
    Command("plan", "qtui.cli.plan:plan"),
    Command("export", "qtui.cli.export:export"),
    Command("imatrix", "qtui.cli.imatrix:imatrix"),
    Command("compare", "qtui.cli.compare:compare"),
    Command("calibrate", "qtui.cli.calibrate:calibrate"),
    Command("symptoms", "qtui.cli.symptoms:symptoms"),
    Command("bench", "qtui.cli.bench:bench"),
    Command("report", "qtui.cli.report:report"),
    Command("sessions", "qtui.cli.sessions:sessions"),
    Command("attach", "qtui.cli.attach:attach"),
    Command("stop", "qtui.cli.sessions:stop"),
    Command("doctor", "qtui.cli.doctor:doctor"),
)

_invoked = ""


def invoked() -> str:
    """The command that this process runs, such as ``qtui eval``, as others are told of it."""
    return f"qtui {_invoked}".strip()


def invoke(name: str) -> None:
    """Note which command this process runs."""
    global _invoked
    _invoked = name


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
