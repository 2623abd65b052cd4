"""Disk full, and an I/O error, at every write: what was said to be saved is there afterwards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.table import put

HERE = Path(__file__).parent
compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


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
    shim = tmp_path / "failing_writes.so"
    source = HERE / "failing_writes.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
    runs = ran(tmp_path, step, LD_PRELOAD=str(shim))
    if step == 1:
        put("disk full", f"every write, {runs} runs: 0")


@pytest.mark.parametrize("step", [64, pytest.param(1, marks=pytest.mark.soak)])
def test_a_disk_that_is_full_sooner_or_later(step: int, tmp_path: Path) -> None:
    ran(tmp_path, step)
