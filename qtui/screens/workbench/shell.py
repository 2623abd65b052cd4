"""The user's own shell commands, run beside the interface."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import EngineError
from engine.store.paths import session_folder, session_name
from qtui.background import in_thread
from qtui.saved.recipe import recipe_toml
from qtui.saved.view import View
from qtui.user.commands import Command, variable
from qtui.views.text import printable

if TYPE_CHECKING:
    from qtui.screens.workbench.screen import Workbench

LINES = 20
"""Lines of a command's output that the log keeps."""


def run_command(bench: Workbench, command: Command, view: View) -> None:
    """Run a command in a shell, without a terminal; its output goes to the log."""
    bench.say_and_log("info", f"{command.name}: started")

    async def running() -> None:
        try:
            done = await in_thread(lambda: _run(command, view))
        except (EngineError, OSError) as error:
            bench.say_and_log("error", f"{command.name}: {error}")
            return
        lines = [printable(line) for line in done.stdout.splitlines() if line.strip()][-LINES:]
        for line in lines[:-1]:
            bench.events.say("info", f"{command.name}: {line}")
        last = f": {lines[-1]}" if lines else ""
        if done.returncode:
            bench.say_and_log("error", f"{command.name}: exit code {done.returncode}{last}")
        else:
            bench.say_and_log("info", f"{command.name}: done{last}")

    bench.run_worker(running(), group="shell")


def _run(command: Command, view: View) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", "-c", command.script], env={**os.environ, **_values(command, view)},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", check=False, start_new_session=True,
    )  # fmt: skip


def _values(command: Command, view: View) -> dict[str, str]:
    """Variables with what a command's placeholders stand for; writes the recipe if it is one."""
    name = session_name(view.source)
    values = {"layer": view.layer or "", "session": name, "model": view.source}
    if "recipe" in command.needs:
        path = Path(session_folder(name)) / "recipe.toml"
        path.write_text(recipe_toml(view, path)[0], encoding="utf-8")
        values["recipe"] = str(path)
    return {variable(each): values[each] for each in command.needs}
