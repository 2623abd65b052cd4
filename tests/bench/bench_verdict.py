"""Seconds from the command to the verdict on ``demo``, with nothing saved.

A new process opens it and sweeps by estimates, as the workbench does on its own, with the standard
profile; told apart is when the model was ready. Imports are part of it.
Run alone: ``python -m pytest tests/bench/bench_verdict.py -s``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

AIM = 10.0
"""Seconds."""
PROGRAM = """
import time
from engine import protocol as p
from engine.client import in_process
from engine.diagnosis.verdict import verdict
from engine.profiles import load_profile
from engine.report.verdicts import sentence

settings = load_profile("standard").settings("standard")
client = in_process("demo")
client.send(p.Open("demo", settings))
client.send(p.Sweep(("int4-g128",), exact="none"))
ready = found = None
while found is None:
    event = client.receive(60.0)
    if isinstance(event, p.ModelReady):
        ready = time.time()
    if isinstance(event, (p.Learned, p.JobEnded)):
        found = verdict(client.session, "int4-g128")
print(ready, time.time(), sentence(found), flush=True)
client.close()
"""


@pytest.mark.timeout(0)
def test_seconds_until_the_verdict(tmp_path: Path) -> None:
    folders = {f"XDG_{kind}_HOME": str(tmp_path / kind) for kind in ("STATE", "CACHE", "CONFIG")}
    begun = time.time()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **folders},
        capture_output=True,
        text=True,
        check=True,
    )
    ready, found, said = done.stdout.split(maxsplit=2)
    print(
        f"\nmodel ready after {float(ready) - begun:.1f} s, verdict after "
        f"{float(found) - begun:.1f} s   aim: {AIM:.0f} s\n{said.strip()}"
    )
