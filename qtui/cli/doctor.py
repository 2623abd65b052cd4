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
            "--profile",
            "-P",
            metavar="NAME",
            help="show a profile's values and where each is set",
        ),
    ] = None,
    keymap: Annotated[
        bool, typer.Option("--keymap", help="print every action and its keys as a keymap.toml")
    ] = False,
    json: JsonOption = None,
) -> None:
    """The installation, for a bug report.

    Prints versions, devices, terminal and paths as one block to paste.
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
