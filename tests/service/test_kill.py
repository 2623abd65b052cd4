"""Killed at any moment, a sweep goes on where it was: same figures, nothing measured twice."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.store.paths import facts_file
from tests import forked, tiny

KILLS = 10


def command(source: Path, text: Path, out: Path) -> list[str]:
    measured = ["--tokens", "4096", "--seq-len", "32", "--formats", "int4-g32"]
    where = ["--text", str(text), "--json", str(out)]
    return ["sweep", str(source), *measured, *where]


def run(source: Path, text: Path, out: Path) -> dict[str, object]:
    asked = [sys.executable, "-m", "qtui", *command(source, text, out)]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(out.read_text()))


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
def test_ten_kills_lose_nothing_and_change_nothing(
    tmp_path: Path, prose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny.build("llama", tmp_path / "model", num_hidden_layers=4)
    undisturbed = run(source, prose, tmp_path / "undisturbed.json")
    total = known()

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "killed"))
    out = tmp_path / "killed.json"
    chance = random.Random(7)
    at = sorted(chance.sample(range(total - 1), KILLS))
    counts = []
    for wanted in at:
        process = forked.qtui(*command(source, prose, out))
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
    final = run(source, prose, out)
    assert figures(final) == figures(undisturbed)
    # What was there before the last run was not measured again by it, and nothing is missing.
    assert final["resumed"] == counts[-1]
    assert known() == total
