"""An engine in somebody else's process, of a client or of the library: nothing global changes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests import tiny

PROGRAM = """
import gc, logging, os, signal, sys, warnings
import torch, transformers, datasets, huggingface_hub  # as a notebook has them already

def state():
    loggers = {name: (logger.level, list(logger.handlers), logger.propagate)
               for name, logger in logging.root.manager.loggerDict.items()
               if name.split(".")[0] == "engine" and isinstance(logger, logging.Logger)}
    named = ("", "engine", "qtui", "transformers", "datasets")
    return {
        "environment": dict(os.environ), "collector": (gc.isenabled(), gc.get_threshold()),
        "frozen": gc.get_freeze_count(), "threads": torch.get_num_threads(),
        "root": (logging.root.level, list(logging.root.handlers)), "grad": torch.is_grad_enabled(),
        "switch": sys.getswitchinterval(), "offline": os.environ.get("HF_HUB_OFFLINE"),
        "loggers": [each for each in loggers.values() if each != (0, [], True)],
        "handlers": [list(logging.getLogger(n).handlers) for n in named],
        "levels": [logging.getLogger(n).level for n in named],
        "propagate": logging.getLogger("engine").propagate,
        "verbosity": transformers.logging.get_verbosity(),
        "bars": transformers.utils.logging.is_progress_bar_enabled(),
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
        "hub offline": (datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE),
        "nice": os.nice(0),
        "hook": sys.excepthook,
    }

def unchanged():
    after = state()
    for name in before:
        assert before[name] == after[name], (name, before[name], after[name])

before = state()
from engine import protocol as p
from engine.client import in_process
source, text = sys.argv[1:]
client = in_process(source)
settings = p.Settings(text=text, tokens=512, seq_len=32, batch_tokens=128, formats=("int8",))
for command in (p.Open(source, settings), p.Triage(), p.Sweep(("int8",)), p.Evaluate("int8")):
    *_, last = client.run(command)
    assert last.status == "done", last
client.close()
unchanged()
import engine
with engine.open(source, tokens=256, seq_len=64, device="cpu", text=text) as model:
    model.triage(["int4-g32"]).wait()
    model.evaluate(format="int4-g32").wait()
unchanged()
print("nothing changed")
"""


def test_an_engine_in_a_notebook_changes_nothing_global(tmp_path: Path, prose: Path) -> None:
    source = tiny.build("llama", tmp_path / "tiny-llama")
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(source), str(prose)],
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr[-2000:]
    assert told.stdout.strip().endswith("nothing changed"), told.stderr
    assert told.stderr == ""
