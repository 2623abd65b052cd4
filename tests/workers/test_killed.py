"""Workers and their engine killed at random moments: the table that is left is the same."""

from __future__ import annotations

import random
from pathlib import Path

import psutil
import pytest

from tests import forked, tiny
from tests.faults.table import put
from tests.faults.test_kill import figures, known

KILLS = 10
ROWS = {"worker": "a worker of a sweep", "engine": "the engine of a sweep with two workers"}


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("who", ROWS)
def test_kills_lose_nothing_and_measure_nothing_twice(
    who: str, tmp_path: Path, prose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    source = tiny.build("llama", tmp_path / "model", num_hidden_layers=12)
    asked = ("--tokens", "8192", "--seq-len", "64", "--text", str(prose), "--formats", "int4-g32")
    command = ("sweep", str(source), *asked)
    alone = forked.ran(*command, folder=tmp_path)
    facts, chance, hit = known(), random.Random(who), 0
    for kill in range(KILLS):
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / f"{who} {kill}"))
        document = tmp_path / "document.json"
        document.unlink(missing_ok=True)
        shared = (*command, "--workers", "3", "--json", str(document))
        process = forked.qtui(*shared, said=tmp_path / "said")
        assert process.pid is not None
        engine = psutil.Process(process.pid)
        wanted = chance.randrange(1, facts)
        workers: list[psutil.Process] = []
        while process.is_alive() and not (len(workers) == 2 and known() >= wanted):
            workers = engine.children() if engine.is_running() else []
            process.join(0.01)
        before = known()
        victim = engine if who == "engine" else chance.choice(workers) if workers else None
        if victim is not None and victim.is_running() and process.is_alive():
            victim.kill()
            hit += 1
        process.join()
        if who == "engine":
            _, left = psutil.wait_procs(workers, timeout=60)
            assert not left, "workers outlive their engine"
            again = forked.ran(*command, "--workers", "3", folder=tmp_path)
            assert again["resumed"] >= before, "measured twice"
            assert figures(again) == figures(alone)
        else:
            assert process.exitcode == 0, (tmp_path / "said").read_text()
            again = forked.ran(*command, folder=tmp_path)
            assert figures(again) == figures(alone)
        assert known() == facts, "facts are missing, or were measured under other keys"
    assert hit >= KILLS // 2
    put(ROWS[who], f"{hit} of {KILLS} hit: 0/0/0")
