"""``qtui doctor``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from engine.profiles import DEFAULT_PROFILE, load_profile
from qtui.cli.exit import check_destination, publish, reporting_errors
from qtui.cli.options import JsonOption
from qtui.cli.progress import put


def doctor(
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile", "-P", metavar="NAME", help="each value of a profile, and who wrote it"
        ),
    ] = None,
    keymap: Annotated[
        bool, typer.Option("--keymap", help="every action with its keys, as a keymap.toml")
    ] = False,
    json: JsonOption = None,
) -> None:
    """The installation, for a bug report.

    Versions, devices, terminal and paths: one block to paste.
    """
    with reporting_errors():
        if keymap:
            from qtui.screens.registry import known_keys
            from qtui.user.keymap import keymap_template

            keys = load_profile(profile or DEFAULT_PROFILE).keys
            put(sys.stdout, keymap_template(*known_keys(keys).values()))
            return
        from qtui.cli.installation import examine, report_text

        check_destination(json)
        publish(examine(profile), report_text, json)
