"""The command line: one file a command, listed in `qtui.cli.commands`.

Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 usage, 3 the
checkpoint or text cannot be read, 4 out of memory, 5 infeasible, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from engine.errors import EngineError
from qtui.cli.commands import OPEN, all_commands, find_command, invoke


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and exit; a first argument that names no command is a MODEL."""
    # Here, for a plugin that registers a command imports this package in the engine's process too.
    from qtui.cli.command_line import command_line
    from qtui.cli.exit import print_error

    given = list(sys.argv[1:] if argv is None else argv)
    first = given[0] if given else ""
    try:
        if first in ("-h", "--help", "--version"):
            listed = all_commands()
        else:
            found = find_command(first)
            if found is None:
                given.insert(0, OPEN.name)
            listed = [found or OPEN]
    except EngineError as error:
        print_error(str(error))
        sys.exit(error.exit_code)
    invoke(listed[0].name)
    command_line(listed)(args=given, prog_name="qtui")
    sys.exit(0)
