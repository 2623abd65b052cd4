"""Exports of formats that are solved on calibration inputs: what was measured is written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine import protocol as p
from engine.checkpoint import list_layers, open_checkpoint
from engine.client import InProcess, in_process
from engine.errors import FormatError
from engine.formats.grammar import parse_format
from engine.quant.quantize import dequantized
from qtui import cli
from tests import tiny
from tests.drive import ended, facts, settings, until
from tests.export.exporting import export_checkpoint

SEQ_LEN, TOKENS = 32, 512


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def client(source: Path, prose: Path) -> Iterator[InProcess]:
    found = in_process(str(source))
    found.send(p.Open(str(source), settings(prose, calib=str(prose), calib_tokens=1024)))
    yield found
    found.close()


def body(source: Path) -> list[str]:
    return [row.name for row in list_layers(open_checkpoint(source)) if row.role == "linear"]


def nll(folder: Path, text: Path) -> float:
    """By plain transformers, in float32, on the windows that the engine cuts."""
    ids = AutoTokenizer.from_pretrained(folder)(text.read_text(encoding="utf-8")).input_ids
    windows = torch.tensor(ids[:TOKENS]).view(-1, SEQ_LEN)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits: Any = model(input_ids=windows).logits[:, :-1]
    targets = windows[:, 1:].flatten()
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets))


def last_end(events: list[p.AnyEvent]) -> p.JobEnded:
    end = events[-1]
    assert isinstance(end, p.JobEnded)
    return end


@pytest.mark.parametrize(
    "others",
    [
        "int3-g32+gptq",
        "int3-g32+gptq:actorder",
        "int4-g32-sym+clip+gptq:actorder:static",
        "int3-channel+gptq:actorder",
        "fp8-e4m3+gptq",
        "int8+gptq+a8",
    ],
)
@pytest.mark.parametrize(
    "measured_before", [True, False], ids=["measured before", "exported alone"]
)
def test_reloaded_by_plain_transformers_it_scores_what_was_measured(
    client: InProcess,
    source: Path,
    prose: Path,
    tmp_path: Path,
    others: str,
    measured_before: bool,
) -> None:
    """Rounded to nearest, calibrated on and solved, in one recipe."""
    recipe = {name: "int8" if "up_proj" in name else others for name in body(source)}
    scored: list[p.AnyEvent] = []
    ask = p.Evaluate(layers=recipe)
    if measured_before:
        client.send(ask)
        scored = until(client, ended("evaluate"))
    out = tmp_path / "out"
    client.send(p.Export(out=str(out), layers=recipe))
    written = until(client, ended("export"))
    assert last_end(written).status == "done", last_end(written).message
    if not measured_before:
        client.send(ask)
        scored = until(client, ended("evaluate"))
    score = facts(scored, p.RecipeScore)[-1]
    assert isinstance(score, p.RecipeScore)
    assert abs(score.dnll) > 1e-4
    assert nll(out, prose) == pytest.approx(score.nll, abs=1e-5)

    model = AutoModelForCausalLM.from_pretrained(out)
    model(input_ids=tiny.ids(1, 4))
    checkpoint = open_checkpoint(source)
    nearest = parse_format(others.split("+")[0])
    solved = [name for name, held in recipe.items() if held == others]
    assert solved
    for name in solved:
        weight = checkpoint.read(f"{name}.weight")
        rounded = dequantized(weight, nearest, torch.float16, name)
        same = torch.equal(model.get_submodule(name).weight, rounded)
        assert not same, f"{name} is rounded to nearest"


def test_what_cannot_be_written_is_refused_before_anything_is_calibrated(
    client: InProcess, tmp_path: Path
) -> None:
    client.send(p.Export(out=str(tmp_path / "out"), format="int4-g32+awq:online+gptq"))
    events = until(client, ended("export"))
    end = last_end(events)
    assert (end.status, end.exit_code) == ("failed", 5)
    assert "'+awq:online' scales inputs at run time" in end.message
    assert not any(isinstance(event, p.Calibrated) for event in events)
    assert not list(tmp_path.glob("*out*"))


def test_an_export_that_is_cancelled_while_it_solves_writes_nothing(
    client: InProcess, source: Path, tmp_path: Path
) -> None:
    """And another may be asked for."""
    client.send(p.Export(out=str(tmp_path / "out"), format="int4-g32+gptq"))
    until(client, lambda event: isinstance(event, p.Progress) and event.phase == "calibrating")
    started = [job for job in client.session.jobs.values() if job.kind == "export"]
    client.send(p.Cancel(started[-1].id))
    assert last_end(until(client, ended("export"))).status == "cancelled"
    assert not list(tmp_path.glob("*out*"))
    client.send(p.Export(out=str(tmp_path / "out"), format="int4-g32+gptq"))
    assert last_end(until(client, ended("export"))).status == "done"
    assert open_checkpoint(tmp_path / "out").config["quantization_config"]


def test_a_calibration_text_that_is_missing_ends_the_export(
    source: Path, prose: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--calib", str(tmp_path / "none.txt"), "--text", str(prose), "--tokens", "64")
    to = ("--to", "checkpoint", "-o", str(tmp_path / "out"))
    with pytest.raises(SystemExit) as exited:
        cli.main(("export", str(source), "--format", "int4-g32+gptq", *to, *given))
    assert exited.value.code == 3
    assert "none.txt" in capsys.readouterr().err
    assert not list(tmp_path.glob("*out*"))


def test_values_that_are_not_finite_are_measured_and_written_as_0(
    prose: Path, tmp_path: Path
) -> None:
    broken = tiny.build("llama", tmp_path / "in")
    name = body(broken)[0]
    tensors = load_file(broken / "model.safetensors")
    tensors[f"{name}.weight"][3, 5] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    engine = in_process(str(broken))
    try:
        engine.send(p.Open(str(broken), settings(prose, calib=str(prose), calib_tokens=1024)))
        engine.send(p.Evaluate(format="int4-g32+gptq"))
        score = facts(until(engine, ended("evaluate")), p.RecipeScore)[-1]
        engine.send(p.Export(out=str(tmp_path / "out"), format="int4-g32+gptq"))
        events = until(engine, ended("export"))
    finally:
        engine.close()
    assert isinstance(score, p.RecipeScore)
    assert nll(tmp_path / "out", prose) == pytest.approx(score.nll, abs=1e-5)
    written = next(event for event in events if isinstance(event, p.Exported))
    assert any(note.startswith(name) and "stored as 0" in note for note in written.notes)


def test_codes_that_nobody_solved_are_not_made_up(source: Path, tmp_path: Path) -> None:
    name = body(source)[0]
    with pytest.raises(FormatError, match="its codes were not given"):
        export_checkpoint(open_checkpoint(source), {name: "int4-g32+gptq"}, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("text", ["int8+a8", "int8-tensor+a8"])
def test_8_bit_inputs_are_rounded_by_what_loads_it(
    client: InProcess, source: Path, prose: Path, tmp_path: Path, text: str
) -> None:
    client.send(p.Evaluate(format=text))
    score = facts(until(client, ended("evaluate")), p.RecipeScore)[-1]
    client.send(p.Export(out=str(tmp_path / "out"), format=text))
    assert last_end(until(client, ended("export"))).status == "done"
    assert isinstance(score, p.RecipeScore)
    assert nll(tmp_path / "out", prose) == pytest.approx(score.nll, abs=1e-5)
    client.send(p.Export(out=str(tmp_path / "weights"), format=text.removesuffix("+a8")))
    assert last_end(until(client, ended("export"))).status == "done"
    assert abs(nll(tmp_path / "weights", prose) - score.nll) > 1e-4
    config = open_checkpoint(tmp_path / "out").config["quantization_config"]
    assert config["format"] == "int-quantized"
