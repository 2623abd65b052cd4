"""An engine in somebody else's process: nothing global is changed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests import tiny

PROGRAM = """
import gc, logging, os, sys, warnings
import torch  # as a notebook has it already

def state():
    loggers = {name: (logger.level, list(logger.handlers), logger.propagate)
               for name, logger in logging.root.manager.loggerDict.items()
               if name.split(".")[0] == "engine" and isinstance(logger, logging.Logger)}
    return {
        "environment": dict(os.environ), "collector": (gc.isenabled(), gc.get_threshold()),
        "frozen": gc.get_freeze_count(), "threads": torch.get_num_threads(),
        "root": (logging.root.level, list(logging.root.handlers)), "grad": torch.is_grad_enabled(),
        "switch": sys.getswitchinterval(), "offline": os.environ.get("HF_HUB_OFFLINE"),
        "loggers": [each for each in loggers.values() if each != (0, [], True)],
    }

before = state()
from engine import protocol as p
from engine.client import in_process
source, text = sys.argv[1:]
engine = in_process(source)
settings = p.Settings(text=text, tokens=512, seq_len=32, batch_tokens=128, formats=("int8",))
for command in (p.Open(source, settings), p.Triage(), p.Sweep(("int8",)), p.Evaluate("int8")):
    *_, last = engine.run(command)
    assert last.status == "done", last
engine.close()
after = state()
for name in before:
    assert before[name] == after[name], (name, before[name], after[name])
print("nothing changed")
"""


def test_an_engine_in_a_notebook_changes_nothing_global(tmp_path: Path, prose: Path) -> None:
    source = tiny.build("llama", tmp_path / "tiny-llama")
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(source), str(prose)],
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert told.stdout.strip().endswith("nothing changed"), told.stderr
