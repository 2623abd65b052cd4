"""An engine in somebody else's process, of a client or of the library: nothing global changes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from engine import protocol as p
from engine.client import EngineGoneError, InProcess, in_process, launch
from engine.store.beside import folder_beside
from engine.store.lock import take
from engine.store.past_sessions import past_sessions
from engine.store.paths import session_folder, session_name
from tests import tiny
from tests.drive import settings

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


def until_ended(engine: InProcess, command: p.AnyCommand) -> p.JobEnded:
    *_, last = engine.run(command)
    assert isinstance(last, p.JobEnded)
    return last


def test_two_measurements_of_a_checkpoint_run_side_by_side_and_share_facts(
    tmp_path: Path, prose: Path
) -> None:
    source = str(tiny.build("llama", tmp_path / "tiny-llama"))
    chosen = settings(prose)
    first = in_process(source)
    try:
        until_ended(first, p.Open(source, chosen))
        until_ended(first, p.Evaluate("int8"))
        second = in_process(source)
        assert (first.beside, second.beside) == (False, True)
        try:
            until_ended(second, p.Open(source, chosen))
            outcome = until_ended(second, p.Evaluate("int8"))
            assert outcome.resumed == 2  # baseline and score, from the other's facts
            until_ended(second, p.Evaluate("int4-g32"))
        finally:
            second.close()
        outcome = until_ended(first, p.Evaluate("int4-g32"))
        assert outcome.measured == 0
    finally:
        first.close()
    assert [each.name for each in past_sessions()] == [session_name(source)]


def test_an_interface_names_the_run_that_has_its_session_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = import_module("engine.client.launch")  # the package has a function of that name
    monkeypatch.setattr(module, "END_SECONDS", 0.05)
    monkeypatch.setattr(module, "start_engine", lambda *_: pytest.fail("it would wait as well"))
    lock = take(session_folder(session_name("demo")) / "lock", 0.0)
    try:
        with pytest.raises(
            EngineGoneError, match=rf"another run \(process {os.getpid()}\)"
        ) as gone:
            asyncio.run(launch("demo", nice=0))
    finally:
        lock.close()
    assert "wait until it ends" in gone.value.reason
    assert not gone.value.log


def test_what_a_killed_process_left_beside_is_deleted() -> None:
    gone = session_folder("model-1a.999999999.1")
    other = session_folder("model-1a.5.gguf-2b")
    assert folder_beside("model-1a").is_dir()
    assert not gone.exists()
    assert other.exists()


def test_others_are_told_before_this_process_which_may_end_on_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    client = in_process(str(tmp_path))
    here: list[bool] = []

    class Serving:
        def announce(self, seq: int, event: p.AnyEvent) -> None:
            here.append(client.receive(0) is not None)

    try:
        while client.receive(0.1) is not None:
            pass
        monkeypatch.setattr(client, "_serving", Serving())
        client._take(0, p.Notice("warning", "the end"))
        assert here == [False]
        assert client.receive(0) == p.Notice("warning", "the end")
        monkeypatch.setattr(client, "_serving", None)
    finally:
        client.close()
