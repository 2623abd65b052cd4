"""Killed at any moment, a sweep goes on where it was: same figures, nothing measured twice."""

from __future__ import annotations

import random
import signal
import sqlite3
import time
from pathlib import Path

import pytest

from engine.store.paths import facts_file
from tests import forked, tiny


def command(source: Path, text: Path) -> list[str]:
    measured = ["--tokens", "2048", "--seq-len", "32", "--formats", "int4-g32"]
    return ["sweep", str(source), *measured, "--text", str(text)]


def known() -> int:
    """Facts committed so far."""
    if not facts_file().exists():
        return 0
    connection = sqlite3.connect(f"file:{facts_file()}?mode=ro", uri=True, timeout=30)
    try:
        return int(connection.execute("SELECT COUNT(*) FROM facts").fetchone()[0])
    except sqlite3.OperationalError:  # the table is not there yet
        return 0
    finally:
        connection.close()


def figures(document: dict[str, object]) -> object:
    """What must not differ between runs: all but times and counts."""
    return {k: v for k, v in document.items() if k not in ("timings", "resumed")}


@pytest.mark.slow
@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.soak)])
def test_kills_lose_nothing_and_change_nothing(
    kills: int, tmp_path: Path, prose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny.build("llama", tmp_path / "model", num_hidden_layers=4)
    undisturbed = forked.ran(*command(source, prose), folder=tmp_path)
    total = known()

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "killed"))
    chance = random.Random(7)
    counts = []
    for kill in range(kills):
        # One in every part of the run: while weights are measured, estimates, and layers.
        wanted = chance.randrange(total * kill // kills, (total - 1) * (kill + 1) // kills)
        process = forked.qtui(*command(source, prose), "--json", str(tmp_path / "killed.json"))
        deadline = time.monotonic() + 120
        while known() < wanted and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        # Somewhere inside what comes next, not always right after a commit.
        late = time.monotonic() + chance.random() * 0.03
        while time.monotonic() < late:
            pass
        assert process.is_alive(), "the sweep ended before it could be killed"
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        counts.append(known())
    assert counts == sorted(counts), "facts were lost"
    final = forked.ran(*command(source, prose), folder=tmp_path)
    assert figures(final) == figures(undisturbed)
    # What was there before the last run was not measured again by it, and nothing is missing.
    assert final["resumed"] == counts[-1]
    assert known() == total
