"""Before a job begins, what it needs at least is compared with what is free."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from engine import protocol as p
from engine.client import InProcess, in_process
from engine.model import memory
from engine.plugins import resolve
from engine.service import commands
from engine.service.jobs import JobSpec, Need, OpenSpec
from engine.workspace import Loaded, needs
from tests import tiny
from tests.drive import ended, settings, until

COMMANDS: dict[str, p.Command] = {
    "triage": p.Triage(("int4-g32",)),
    "activations": p.Triage(("int4-g32",), activations=True),
    "sweep": p.Sweep(("int4-g32",), exact="none"),
    "diagnose": p.Diagnose(),
    "evaluate": p.Evaluate(format="int4-g32"),
    "recipe": p.MeasureRecipe(),
    "errors": p.MeasureErrors(format="int4-g32"),
    "fixes": p.TryFixes(worst=1, forwards=1),
    "plan": p.Plan(budget=p.Budget(bits=5.0), forwards=4),
    "export": p.Export(out="/nowhere/x", format="int4-g32"),
    "compare": p.Compare(("/nowhere",)),
    "symptoms": p.FindSymptoms(
        prompts=("a",), format="int4-g32", sampling=p.Sampling(new_tokens=1)
    ),
    "calibrate": p.Calibrate(sets=("random",), method="int4-g32+gptq", samples=(2,), halves=False),
    "texts": p.MeasureTexts(format="int4-g32"),
    "units": p.MeasureUnits(
        format="int4-g32",
        direction="degrade",
        by="layer",
        units=("model.layers.0.mlp.down_proj",),
        nll=5.0,
    ),
    "windows": p.SumWindows(
        direction="degrade",
        groups=((("model.layers.0.mlp.down_proj", "int4-g32"),),),
        windows=(0, 2),
    ),
    "imatrix": p.WriteImatrix(out="/nowhere/x.gguf"),
}
"""Every job that people wait for."""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, prose: Path) -> Iterator[InProcess]:
    source = tiny.build("llama", tmp_path_factory.mktemp("needs") / "model", num_hidden_layers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        with closing(in_process(str(source))) as found:
            chosen = settings(prose, tokens=64, calib=str(prose), calib_tokens=64)
            found.send(p.Open(str(source), chosen))
            until(found, ended("open"))
            yield found


def warned(client: InProcess, command: p.Command) -> tuple[list[str], bool]:
    """What was said of memory, and whether that came before any progress."""
    command = p.identified(command)
    job = client.start(command)
    events = until(client, lambda e: isinstance(e, p.JobEnded) and e.job == job)
    kinds = [type(each) for each in events]
    said = [
        e.message for e in events if isinstance(e, p.Notice) and "beside what is open" in e.message
    ]
    first = kinds.index(p.Notice) if said else 0
    return said, not {p.Progress, p.Learned} & set(kinds[:first])


def test_every_job_that_is_announced_says_what_it_needs() -> None:
    declared = [resolve(each) for each in commands.DECLARED]
    announced = {
        each.command: each
        for each in declared
        if isinstance(each, JobSpec)
        and not isinstance(each, OpenSpec)
        and each.announced != "never"
    }
    assert all(each.memory is not None for each in announced.values())
    assert announced.keys() == {type(each) for each in COMMANDS.values()}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_job_that_does_not_fit_says_so_before_it_begins(
    name: str, client: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "memory_free", lambda device: 1 << 10)
    said, first = warned(client, COMMANDS[name])
    (sentence,) = said
    assert first
    assert "cpu has 0.0 MiB free: " in sentence
    assert "end what else uses the memory" in sentence
    if name not in ("triage", "export"):  # those that only read files have no other way
        assert "a smaller --seq-len" in sentence


def test_a_job_that_fits_says_nothing(client: InProcess) -> None:
    assert warned(client, COMMANDS["evaluate"]) == ([], True)


def test_longer_windows_more_streams_and_a_budget_need_more(client: InProcess) -> None:
    loaded: Loaded = client._engine._workspace.need(Loaded)
    one = needs._micro_batch(loaded)
    # 4 windows of 32 tokens in float32: states of 64 in and out, and the widest layer, 64 to 128.
    assert one == 4 * 32 * (64 + 64 + 64 + 128) * 4
    backward = needs._micro_batch(loaded, backward=True)
    attention, mlp = 4 * (64 + 64) - 2 * 32, 3 * (64 + 128)
    assert backward == 4 * 32 * (64 + 64 + attention + mlp) * 4
    loaded.opened.workspace.settings = msgspec.structs.replace(
        loaded.settings, memory_budget=1 << 40
    )
    found = needs._of_model(loaded, one)
    # The budget is for the weights too, and these are in memory already.
    assert found.bytes == one + (1 << 40) - loaded.network.weights_in_memory
    assert found.change == ("a smaller --seq-len", "a smaller --memory-budget", "another --device")
    loaded.opened.workspace.settings = msgspec.structs.replace(loaded.settings, memory_budget=None)


def test_a_recipe_is_not_kept_beside_a_model_that_is_streamed(
    client: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: Loaded = client._engine._workspace.need(Loaded)
    name = "model.layers.0.mlp.up_proj"
    rows, columns = loaded.network.layers[name].shape
    assert needs._recipe(loaded, {name: "int8"}) == rows * columns + rows * 2
    monkeypatch.setattr(type(loaded.network), "streamed", True)
    assert needs._recipe(loaded, {name: "int8"}) == 0


def test_sizes_are_said_in_words() -> None:
    need = Need(3 << 30, 1 << 29, "cuda:0", ("another --device",))
    assert need.lacking("sweep int4") == (
        "sweep int4 needs at least 3.0 GiB beside what is open, and cuda:0 has 0.5 GiB free: "
        "choose another --device, or end what else uses the memory; it begins all the same, and "
        "takes smaller steps where memory runs out"
    )
    assert not need._replace(free=3 << 30).lacking("sweep")
