"""Checkpoints with a planted fault, and what is found in them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from engine import protocol as p
from engine.client import in_process
from engine.demo import DEMO_PATH
from engine.diagnosis.finding import Finding
from engine.diagnosis.findings import findings
from engine.measure.weights.triage import triage
from engine.session import Session, apply
from engine.store.facts import FactStore
from tests.drive import ended, open_files, settings, until

State = dict[str, Tensor]


def altered(folder: Path, change: Callable[[State], object]) -> Path:
    """A copy of the demo, some of whose tensors were changed, in a new folder."""
    shutil.copytree(DEMO_PATH, folder)
    file = folder / "model.safetensors"
    state = load_file(file)
    change(state)
    save_file({name: each.contiguous() for name, each in state.items()}, file, {"format": "pt"})
    return folder


def triaged(folder: Path, store: FactStore) -> Session:
    """A session that heard of the weights in a folder."""
    opened = open_files(folder, store, settings())
    session = Session()
    apply(session, opened.listed())
    for event in triage(opened, ["int4-g128"], "triage"):
        if isinstance(event, p.Learned):
            apply(session, event)
    return session


def standing_out(session: Session, format: str = "int4-g128") -> list[Finding]:
    """Findings that a clean model does not have."""
    return [each for each in findings(session, format) if each.severity != "info"]


def diagnosed(folder: Path, **given: object) -> Session:
    """A session with weights and activations."""
    chosen = settings(sweep_formats=("int4-g32",), **given)
    client = in_process(str(folder))
    try:
        client.send(p.Open(str(folder), chosen))
        client.send(p.Triage(activations=True))
        last = until(client, ended("triage"))[-1]
        assert isinstance(last, p.JobEnded)
        assert last.status == "done", last.message
        return client.session
    finally:
        client.close()


def with_effects(folder: Path, **given: object) -> Session:
    """A session with weights, activations, and effects of all layers, estimated and measured."""
    chosen = settings(sweep_formats=("int4-g32",), **{"calib_tokens": 2048, **given})
    client = in_process(str(folder))
    try:
        client.send(p.Open(str(folder), chosen))
        client.send(p.Triage(activations=True))
        client.send(p.Sweep(("int4-g32",), only=True))
        last = until(client, ended("sweep"))[-1]
        assert isinstance(last, p.JobEnded)
        assert last.status == "done", last.message
        return client.session
    finally:
        client.close()
