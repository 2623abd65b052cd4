"""Every job on a model with streamed blocks: the facts of one in memory, or refused at once."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from engine import protocol as p
from engine.client import InProcess, in_process
from engine.client.in_process import JobError
from engine.model import memory_tiers
from engine.model.streamed_blocks import StreamedBlocks
from engine.plugins import resolve
from engine.service import commands
from engine.service.jobs import JobSpec
from engine.workspace import Loaded
from tests import tiny
from tests.drive import settings

DOWN = "model.layers.1.mlp.down_proj"
RECIPE = {DOWN: "int4-g32"}
WHOLE = "need the whole model in memory, and its blocks are streamed from disk"


class Both(NamedTuple):
    """The same checkpoint, opened twice with separate stores."""

    resident: InProcess
    streamed: InProcess
    blocks: StreamedBlocks
    folder: Path
    """What jobs write, and another checkpoint of the same model in ``other``."""


JOBS: dict[str, p.Command] = {
    "triage": p.Triage(("int4-g32",)),
    "activations": p.Triage(("int4-g32",), activations=True),
    "histogram": p.AskHistogram(DOWN),
    "ranges": p.AskRanges(DOWN, "int4-g32"),
    "sweep": p.Sweep(("int4-g32",), exact="none"),
    "exact": p.Sweep(("int4-g32",), by="block", only=True),
    "restore": p.Sweep(("int4-g32",), "restore", exact="top:3"),
    "units": p.MeasureUnits(format="int8", direction="degrade", by="layer", units=(DOWN,), nll=5.0),
    "windows": p.SumWindows(direction="degrade", groups=(((DOWN, "int4-g32"),),), windows=(0, 4)),
    "diagnose": p.Diagnose("int4-g32", errors=p.MeasureErrors("int4-g32")),
    "fixes": p.TryFixes((DOWN,), "int4-g32", forwards=1),
    "known fixes": p.AskFixes((DOWN,), "int4-g32"),
    "errors": p.MeasureErrors("int8"),
    "error map": p.AskErrorMap(DOWN, "int4-g32"),
    "files": p.Compare(("other",), score=False),
    "compare": p.Compare(("other",), restore=1, save_logits="logits.bin"),
    "logits": p.Compare(("other",), score=False, logits="logits.bin"),
    "evaluate": p.Evaluate("int4-g32+gptq"),
    "recipe": p.MeasureRecipe(),
    "recall": p.RecallScores(),
    "export": p.Export(out="exported", format="int4-g32", check=False),
    "imatrix": p.WriteImatrix(out="matrix.gguf"),
    "plan": p.Plan(budget=p.Budget(bits=5.0), formats=("int4-g32", "int8"), forwards=20.0),
    "stored plan": p.Plan(budget=p.Budget(bits=5.0), forwards=0.0, stored=True),
}
"""What works. Paths are below `Both.folder`."""
REFUSED: dict[str, tuple[p.Command, str]] = {
    "symptoms": (
        p.FindSymptoms(prompts=("a few words",), layers=RECIPE),
        f"symptoms {WHOLE}, once for every new token: choose",
    ),
    "divergence": (
        p.FindSymptoms(divergence=True, layers=RECIPE),
        f"tables of divergence {WHOLE}.*qtui eval",
    ),
    "calibrate": (
        p.Calibrate(sets=("random",), method="int4-g32+gptq", samples=(2,)),
        f"comparisons of calibration sets {WHOLE}.*qtui eval --calib",
    ),
    "texts": (
        p.MeasureTexts(format="int4-g32"),
        f"several texts, and figures by position, {WHOLE}.*evaluate one",
    ),
    "own samples": (
        p.Calibrate(sets=("own",), method="int4-g32+gptq", samples=(2,)),
        WHOLE,
    ),
}
"""What is not, and the sentence."""
NO_FACTS = {
    "histogram",
    "ranges",
    "known fixes",
    "error map",
    "windows",
    "export",
    "imatrix",
    "recall",
}
"""They answer with an event, or with a file."""


def test_every_job_that_people_wait_for_is_here() -> None:
    """Questions about one layer, and parts of a job for workers, need not be."""
    declared = [resolve(each) for each in commands.DECLARED]
    jobs = {each.command for each in declared if isinstance(each, JobSpec) and each.memory}
    assert jobs <= {type(each) for each in (*JOBS.values(), *(one for one, _ in REFUSED.values()))}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, prose: Path) -> Iterator[Both]:
    folder = tmp_path_factory.mktemp("streamed")
    source = tiny.build("llama", folder / "model", num_hidden_layers=2)
    tiny.build("llama", folder / "other", seed=1, num_hidden_layers=2)

    def opened(budget: int | None) -> InProcess:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_STATE_HOME", str(folder / f"state-{budget}"))
            client = in_process(str(source))
        chosen = settings(
            prose, tokens=128, calib=str(prose), calib_tokens=128, draws=1, memory_budget=budget
        )
        list(client.run(p.Open(str(source), chosen)))
        return client

    with closing(opened(None)) as resident, closing(opened(1)) as streamed:
        blocks = streamed._engine._workspace.need(Loaded).network.blocks
        assert isinstance(blocks, StreamedBlocks)
        yield Both(resident, streamed, blocks, folder)


def below(folder: Path, command: Any, own: str) -> Any:
    """The command with its paths in a folder; what it writes has its own name."""
    import msgspec

    changed: dict[str, object] = {}
    if hasattr(command, "artefacts"):
        changed["artefacts"] = tuple(str(folder / each) for each in command.artefacts)
    for name in ("out", "save_logits", "logits"):
        if path := getattr(command, name, ""):
            changed[name] = str(folder / own / path)
    return msgspec.structs.replace(command, **changed)


def facts(
    client: InProcess, command: p.Command, into: dict[str, str] | None = None
) -> dict[str, str]:
    """What a job learns or finds, as text: nan differs from itself. A recipe that was set may be
    evaluated meanwhile."""
    found: dict[str, str] = {} if into is None else into
    for event in client.run(command):
        if isinstance(event, p.Learned):
            found.update(zip(event.keys, map(repr, event.facts), strict=True))
    return found


@pytest.mark.parametrize("name", JOBS)
def test_a_job_learns_what_it_learns_of_a_model_in_memory(name: str, both: Both) -> None:
    found: list[dict[str, str]] = []
    for own, client in (("a", both.resident), ("b", both.streamed)):
        (both.folder / own).mkdir(exist_ok=True)
        if name == "logits":  # written by a job of its own
            needed = below(both.folder, JOBS["compare"], own)
            facts(client, needed)
        if name in ("recipe", "recall"):
            facts(client, p.SetFormat((DOWN,), "int4-g32"))
        found.append(facts(client, below(both.folder, JOBS[name], own)))
    shared = found[0].keys() & found[1].keys()
    assert {key: found[0][key] for key in shared} == {key: found[1][key] for key in shared}
    assert shared or name in NO_FACTS
    written = [sorted(each.rglob("*")) for each in (both.folder / "a", both.folder / "b")]
    for mine, theirs in zip(*written, strict=True):
        if mine.suffix in (".bin", ".gguf", ".safetensors"):
            assert mine.read_bytes() == theirs.read_bytes(), mine.name


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_streamed_model_cannot_do_is_refused_before_a_block_is_read(
    name: str, both: Both
) -> None:
    command, said = REFUSED[name]
    before = list(both.blocks.reads)
    with pytest.raises(JobError, match=said):
        facts(both.streamed, command)
    assert both.blocks.reads == before


@pytest.mark.parametrize("how", ["changed", "full"])
def test_what_was_measured_before_a_file_changes_or_a_disk_is_full_is_not_lost(
    how: str, tmp_path: Path, prose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny.build("llama", tmp_path / "model", num_hidden_layers=2)
    file = source / "model.safetensors"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    chosen = settings(prose, tokens=128, draws=1, memory_budget=1)
    sweep = p.Sweep(("int4-g32",), exact="none", only=True)
    with closing(in_process(str(source))) as client:
        list(client.run(p.Open(str(source), chosen)))
        blocks = client._engine._workspace.need(Loaded).network.blocks
        assert isinstance(blocks, StreamedBlocks)
        read, left = blocks.reader.read, iter(range(4))  # the second reading for estimates fails

        def reading(keys: Any) -> Any:
            if next(left, None) is None and how == "changed":
                os.utime(file, ns=(0, 0))
            return read(keys)

        def writing(file: int, tensor: Any, at: int) -> None:
            if next(left, None) is None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(file, tensor, at)

        write = memory_tiers._write
        if how == "changed":
            monkeypatch.setattr(blocks.reader, "read", reading)
            said = rf"{file} is another file or was written to.*saved"
        else:
            monkeypatch.setattr(memory_tiers, "_write", writing)
            said = r"no room for the states.*TMPDIR.*saved"
        measured: dict[str, str] = {}
        with pytest.raises(JobError, match=said):
            facts(client, sweep, measured)
        assert measured
        monkeypatch.undo()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with closing(in_process(str(source))) as client:
        list(client.run(p.Open(str(source), chosen)))
        again = [event for event in client.run(sweep) if isinstance(event, p.Learned)]
    assert measured.keys() == {key for event in again if not event.fresh for key in event.keys}
    found = [fact for event in again for fact in event.facts if isinstance(fact, p.Estimate)]
    assert len(found) == 2 * 7 + 2
