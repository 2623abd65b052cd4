"""What C code writes to standard output does not get into what a command prints."""

from __future__ import annotations

import subprocess
import sys


def test_c_output_is_thrown_away_and_ours_is_kept_in_order() -> None:
    program = """
import ctypes, sys
from engine.plan.quiet import without_stdout
libc = ctypes.CDLL(None)
print("before")
with without_stdout():
    libc.puts(b"noise")
libc.puts(b"from C")
libc.fflush(None)
print("after")
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert ran.stdout.decode().split("\n") == ["before", "from C", "after", ""]


def test_without_a_standard_output_nothing_is_done() -> None:
    program = """
import os, sys
from engine.plan.quiet import without_stdout
os.close(1)
with without_stdout():
    sys.stderr.write("ran")
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert ran.stderr.decode().startswith("ran")
