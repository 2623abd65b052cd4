"""Disk full, and an I/O error, at every write: what was said to be saved is there afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.shim import compiler, failing_writes
from tests.faults.table import put


def ran(folder: Path, step: int, **environment: str) -> int:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.failing_writes", str(folder), str(step)],
        env={**os.environ, **environment}, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["lost"] == {}
    assert found["runs"] > 100 / step
    assert found["said"] > 5 * found["runs"]
    return int(found["runs"])


@compiler
@pytest.mark.parametrize("step", [17, pytest.param(1, marks=pytest.mark.soak)])
def test_every_write(step: int, tmp_path: Path) -> None:
    runs = ran(tmp_path, step, LD_PRELOAD=str(failing_writes(tmp_path)))
    if step == 1:
        put("disk full", f"every write, {runs} runs: 0")


@pytest.mark.parametrize("step", [64, pytest.param(1, marks=pytest.mark.soak)])
def test_a_disk_that_is_full_sooner_or_later(step: int, tmp_path: Path) -> None:
    ran(tmp_path, step)
