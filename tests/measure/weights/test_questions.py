"""Small questions between the jobs: histograms with a grid, the experts of a layer."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import protocol as p
from engine.checkpoint import list_layers, open_checkpoint, read_layer
from engine.client import InProcess, in_process
from engine.formats.grammar import parse_format
from engine.quant.quantize import dequantized
from tests import tiny
from tests.drive import ended, settings, until

GATE_UP = "model.layers.1.mlp.experts.gate_up_proj"
QUERY = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("mixtral", tmp_path_factory.mktemp("experts") / "mixtral")


@pytest.fixture
def client(source: Path, prose: Path) -> Iterator[InProcess]:
    found = opened(source, prose)
    yield found
    found.close()


def opened(source: Path, prose: Path, **given: object) -> InProcess:
    found = in_process(str(source))
    found.send(p.Open(str(source), settings(prose, **given), model=False))
    until(found, ended("open"))
    return found


def answer(client: InProcess, command: p.AnyCommand) -> p.AnyEvent:
    kinds = (p.HistogramReady, p.ExpertsReady, p.Refused)
    client.send(command)
    return until(client, lambda event: isinstance(event, kinds))[-1]


def test_a_histogram_comes_with_the_grid_of_the_format_asked_for(client: InProcess) -> None:
    found = answer(client, p.AskHistogram(QUERY, bins=20, format="int4-G32-asym"))
    assert isinstance(found, p.HistogramReady)
    assert (found.layer, len(found.counts), found.format) == (QUERY, 20, "int4-g32")
    assert found.grid == sorted(found.grid)
    assert len(found.grid) == 16
    assert found.step > 0
    assert client.session.histograms[QUERY] == found


@pytest.mark.parametrize("format", ["", "kept", "int4-g128+gptq", "q4_k", "fp16"])
def test_a_histogram_without_a_grid_is_no_error(client: InProcess, format: str) -> None:
    found = answer(client, p.AskHistogram(QUERY, format=format))
    assert isinstance(found, p.HistogramReady)
    assert (found.format, found.grid) == (format, [])
    assert math.isnan(found.step)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (p.AskHistogram("no.such.layer"), "no.such.layer"),
        (p.AskHistogram(QUERY, format="int44"), "int44"),
        (p.AskHistogram(QUERY, bins=0), "at least one bin"),
        (p.AskExperts("no.such.layer"), "no.such.layer"),
        (p.AskExperts(QUERY), "has no experts"),
    ],
)
def test_what_cannot_be_answered_names_command_and_layer(
    client: InProcess, command: p.AskHistogram | p.AskExperts, says: str
) -> None:
    found = answer(client, command)
    assert isinstance(found, p.Refused)
    assert says in found.message
    assert (found.command, found.layers) == (type(command).__name__, (command.layer,))


@pytest.mark.parametrize("command", [p.AskHistogram(GATE_UP), p.AskExperts(GATE_UP)])
def test_a_file_that_is_gone_meanwhile_is_told_of_by_the_right_name(
    command: p.AskHistogram | p.AskExperts, source: Path, prose: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in source.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    client = opened(copy, prose)
    try:
        (copy / "model.safetensors").unlink()
        found = answer(client, command)
    finally:
        client.close()
    assert isinstance(found, p.Refused)
    assert "model.safetensors" in found.message
    assert (found.command, found.layers) == (type(command).__name__, (GATE_UP,))


def test_every_expert_has_its_own_figures(source: Path, prose: Path, tmp_path: Path) -> None:
    """Against the whole layer, taken apart in float64."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in source.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    state = load_file(copy / "model.safetensors")
    state["model.layers.1.block_sparse_moe.experts.2.w1.weight"][0, :2] = torch.tensor(
        [torch.nan, torch.inf]
    )
    state["model.layers.1.block_sparse_moe.experts.3.w3.weight"][5, 5] = 9.0
    for kind in ("w1", "w3"):
        state[f"model.layers.1.block_sparse_moe.experts.1.{kind}.weight"].fill_(torch.nan)
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    formats = ("int4-g32", "int8", "int4-g32+gptq")
    client = opened(copy, prose, formats=formats)
    try:
        found = answer(client, p.AskExperts(GATE_UP))
    finally:
        client.close()
    assert isinstance(found, p.ExpertsReady)
    assert client.session.experts[GATE_UP] == found
    checkpoint = open_checkpoint(copy)
    row = next(row for row in list_layers(checkpoint) if row.name == GATE_UP)
    whole = read_layer(checkpoint, row)
    assert list(found.relative) == ["int4-g32", "int8"]  # what is built
    assert found.nonfinite == [0, whole[1].numel(), 2, 0]
    for index, expert in enumerate(whole):
        columns = [found.std[index], found.max_abs[index], found.outliers[index]]
        if index == 1:
            assert all(map(math.isnan, columns))
            assert math.isnan(found.relative["int8"][1])
            continue
        sound = expert.isfinite()
        finite = expert[sound].double()
        std = float(finite.std(correction=0))
        beyond = float(((finite - finite.mean()).abs() > 4 * std).double().mean())
        assert columns == pytest.approx([std, float(finite.abs().max()), beyond])
        for text, column in found.relative.items():
            approx = dequantized(expert, parse_format(text), torch.float16)[sound].double()
            error = float((finite - approx).norm() / finite.norm())
            assert column[index] == pytest.approx(error)
    assert found.outliers[3] > 0


def test_a_histogram_does_not_wait_for_all_experts(
    client: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.measure.weights import experts

    begun, going_on = threading.Event(), threading.Event()
    whole = experts._expert
    seen: list[int] = []

    def slow(*given: object) -> experts.Expert:
        seen.append(len(seen))
        begun.set()
        assert going_on.wait(60)
        return whole(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(experts, "_expert", slow)
    client.send(p.AskExperts(GATE_UP))
    client.send(p.AskExperts(GATE_UP))  # is answered with the first
    assert begun.wait(60)
    client.send(p.AskHistogram(QUERY))
    client.send(p.AskHistogram(GATE_UP))
    going_on.set()
    events = until(client, lambda event: isinstance(event, p.ExpertsReady))
    answered = [e.layer for e in events if isinstance(e, p.HistogramReady | p.ExpertsReady)]
    assert answered == [GATE_UP, QUERY, GATE_UP]  # the newest histogram first, experts last
    assert len(seen) == 4
