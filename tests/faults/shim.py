"""The library that lets writes fail, loaded before libc."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


def failing_writes(folder: Path) -> Path:
    """`failing_writes.c`, compiled into a folder."""
    shim = folder / "failing_writes.so"
    source = Path(__file__).with_name("failing_writes.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
    return shim
