"""The list of commands: what it holds, and a command that is added from outside."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import plugins
from engine.plugins import resolve
from qtui.cli import commands

Run = Callable[..., tuple[int, str, str]]

PLUGIN = '''
"""A plugin: one command."""
from typing import Annotated
import typer
from qtui.cli.commands import register_command

def count(model: str, times: Annotated[int, typer.Option("--times", help="how often")] = 1) -> None:
    """Count a model."""
    print(model * times)

register_command("count", "counting:count")
'''


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin that the environment names, and that was not looked for yet."""
    (tmp_path / "counting.py").write_text(PLUGIN, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "counting", raising=False)
    monkeypatch.setenv(plugins.VARIABLE, "counting")
    monkeypatch.setattr(plugins, "_looked", False)
    monkeypatch.setattr(plugins, "_loaded", set())
    monkeypatch.setattr(commands, "_registered", {})


def test_every_command_is_a_function_with_help_in_a_file_of_its_own() -> None:
    for command in commands.COMMANDS:
        function = resolve(command.function)
        assert callable(function), command.name
        assert (function.__doc__ or "").strip(), command.name
    names = [command.name for command in commands.COMMANDS]
    assert len(set(names)) == len(names)


@pytest.mark.usefixtures("plugin")
def test_a_command_from_outside_is_run_and_listed(run: Run) -> None:
    assert run("count", "ab", "--times", "2") == (0, "abab\n", "")
    code, out, _ = run("--help")
    assert code == 0
    assert "Count a model." in out
    assert "how often" in run("count", "--help")[1]


@pytest.mark.usefixtures("plugin")
def test_a_command_of_ours_or_a_path_looks_for_no_plugin(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden() -> None:
        raise AssertionError("plugins were looked for")

    monkeypatch.setattr(commands, "load_plugins", forbidden)
    assert run("doctor", "--help")[0] == 0
    assert commands.find_command("./count") is None
    assert commands.find_command("org/model") is None
    assert commands.find_command("--ascii") is None


@pytest.mark.usefixtures("plugin")
def test_a_plugin_that_fails_is_named_and_our_commands_go_on(run: Run, tmp_path: Path) -> None:
    (tmp_path / "counting.py").write_text("1 / 0", encoding="utf-8")
    code, out, err = run("count", "ab")
    assert (code, out) == (1, "")
    assert "'counting'" in err
    assert "ZeroDivisionError" in err
    assert run("doctor", "--help")[0] == 0


def test_two_commands_cannot_have_one_name() -> None:
    with pytest.raises(ValueError, match="'sweep'"):
        commands.register_command("sweep", "counting:count")
