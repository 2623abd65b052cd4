"""Killed at any moment, a command goes on where it was: same figures, nothing measured twice."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from engine.store.paths import facts_file
from tests import forked, tiny
from tests.faults.table import put

RUN_COSTS = ("timings", "resumed", "forwards")
"""Parts of a document that say what the run cost, not what was found."""


class Command(NamedTuple):
    """A command that is killed again and again."""

    name: str
    arguments: tuple[str, ...]
    out: Path | None = None
    """The folder that it writes."""


class Undisturbed(NamedTuple):
    """What a command does if it is left alone."""

    document: Any
    facts: int
    """In the store when it has ended."""
    seconds: float
    files: dict[str, str]
    """Hash of each file that it wrote."""


def known() -> int:
    """Facts committed so far."""
    if not facts_file().exists():
        return 0
    with closing(sqlite3.connect(f"file:{facts_file()}?mode=ro", uri=True, timeout=30)) as db:
        try:
            return int(db.execute("SELECT COUNT(*) FROM facts").fetchone()[0])
        except sqlite3.OperationalError:  # the table is not there yet
            return 0


def figures(document: Any) -> Any:
    """What must not differ between runs."""
    return {name: value for name, value in document.items() if name not in RUN_COSTS}


def files(folder: Path | None) -> dict[str, str]:
    """Hash of every file in a folder; empty if there is none."""
    if folder is None or not folder.exists():
        return {}
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def left_alone(command: Command, folder: Path) -> Undisturbed:
    before = time.monotonic()
    document = forked.ran(*command.arguments, folder=folder)
    spent = time.monotonic() - before
    found = Undisturbed(document, known(), spent, files(command.out))
    if command.out is not None:
        shutil.rmtree(command.out)
    return found


def killed(command: Command, folder: Path, reached: Callable[[], bool], seconds: float) -> bool:
    """Whether a command was killed once it had reached something, or after so many seconds."""
    process = forked.qtui(*command.arguments, "--json", str(folder / "killed.json"))
    late = time.monotonic() + seconds
    while not reached() and time.monotonic() < late and process.is_alive():
        time.sleep(0.005)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def commands(folder: Path, source: Path, text: Path) -> list[Command]:
    measured = ("--tokens", "1024", "--seq-len", "32", "--text", str(text))
    one = (*measured, "--formats", "int4-g32")
    out = folder / "exported"
    exporting = ("--format", "int4-g32", "--to", "checkpoint", "--no-check", "-o", str(out))
    return [
        Command("estimate", ("sweep", str(source), *one, "--exact", "none")),
        Command("sweep", ("sweep", str(source), *one)),
        Command(
            "plan", ("plan", str(source), *measured, "--formats", "int4-g32,int8", "--bits", "5")
        ),
        Command("export", ("export", str(source), *exporting), out),
    ]


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kills", [2, pytest.param(125, marks=pytest.mark.soak)])
def test_kills_lose_nothing_and_change_nothing(
    kills: int, tmp_path: Path, prose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of four commands is killed this often; the store goes from one to the next."""
    source = tiny.build("llama", tmp_path / "model", num_hidden_layers=3)
    all_commands = commands(tmp_path, source, prose)
    undisturbed = [left_alone(command, tmp_path) for command in all_commands]

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "killed"))
    chance = random.Random(7)
    hit = before = 0
    for command, alone in zip(all_commands, undisturbed, strict=True):
        counts = [known()]
        seconds = alone.seconds
        for kill in range(kills):
            # One in every part of what is left to be measured; or at some moment, where nothing is.
            wanted = before + 1 + (alone.facts - before) * (kill + chance.random()) / kills
            late = chance.random() * seconds if chance.random() < 0.3 else seconds
            if killed(command, tmp_path, lambda wanted=wanted: known() >= wanted, late):  # type: ignore[misc]
                hit += 1
            else:
                seconds *= 0.8  # it is quicker than it was: what it measured is known
            counts.append(known())
            assert files(command.out) in ({}, alone.files), "part of an export"
            if command.out is not None:
                shutil.rmtree(command.out, ignore_errors=True)
        assert counts == sorted(counts), "facts were lost"
        final = forked.ran(*command.arguments, folder=tmp_path)
        assert figures(final) == figures(alone.document), command.name
        assert files(command.out) == alone.files
        # Nothing is missing, and nothing was measured under another name.
        assert known() == alone.facts
        if command.name == "sweep" and counts[-1] > before:
            assert final["resumed"] >= counts[-1] - before, "measured twice"
        before = alone.facts
    left = {path.name for path in tmp_path.iterdir()} - {"state", "config", "cache"}
    assert not [name for name in left if name.startswith(".")], "left by an export that was killed"
    assert hit >= kills * 2
    if kills > 2:
        put("kill -9", f"{hit} of {kills * len(all_commands)} hit: 0/0/0")
