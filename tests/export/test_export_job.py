"""An export as a job of the engine, and as a command line against the real engine."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from engine import protocol as p
from engine.checkpoint import list_layers, open_checkpoint, read_layer
from engine.client import InProcess, in_process
from engine.demo import DEMO_PATH
from engine.export import writer
from engine.formats.grammar import parse_format
from engine.formats.storage import stored_bits
from engine.quant.quantize import dequantized, scale_dtype_for
from qtui import cli
from tests import tiny
from tests.drive import ended, settings, until

Run = Callable[..., tuple[int, str, str]]
TO = ("--to", "checkpoint")
QUERY = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> Run:
    """A command line; what is exported is loaded only where that is tested."""
    unchecked = () if "loads" in request.node.name else ("--no-check",)

    def command_line(*given: str) -> tuple[int, str, str]:
        more = unchecked if given[0] == "export" else ()
        with pytest.raises(SystemExit) as exited:
            cli.main([*given, *more])
        out, err = capsys.readouterr()
        assert isinstance(exited.value.code, int)
        return exited.value.code, out, err

    return command_line


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def client(source: Path, prose: Path) -> Iterator[InProcess]:
    found = in_process(str(source))
    found.send(p.Open(str(source), settings(prose), model=False))
    yield found
    found.close()


def last_end(events: list[p.AnyEvent]) -> p.JobEnded:
    end = events[-1]
    assert isinstance(end, p.JobEnded)
    return end


# --- the command line ----------------------------------------------------------------------------


def test_the_demo_is_exported_and_loads_in_plain_transformers(run: Run, tmp_path: Path) -> None:
    """Weights against the files' own, quantised here; size against the file's header."""
    from transformers import AutoModelForCausalLM

    out = tmp_path / "out"
    code, said, err = run(
        "export", "demo", "--format", "int4-g128", *TO, "-o", str(out), "--json", "-"
    )
    assert code == 0, err
    found: dict[str, Any] = json.loads(said)
    checkpoint = open_checkpoint(DEMO_PATH)
    body = [row for row in list_layers(checkpoint) if row.role == "linear"]
    assert found["schema"] == "qtui.export/1"
    assert found["checkpoint"]["fingerprint"] == checkpoint.fingerprint
    assert found["recipe"] == {row.name: "int4-g128" for row in body}
    assert (found["folder"], found["layers"]) == (str(out), len(body))
    with safe_open(out / "model.safetensors", "pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 - no mapping
    assert found["bytes"] == sum(tensor.nbytes for tensor in tensors)
    fmt = parse_format("int4-g128")
    bits = sum(stored_bits(fmt, row.shape) for row in body)
    weights = sum(row.shape[0] * row.shape[1] for row in body)
    assert found["bits_per_weight"] == pytest.approx(bits / weights)
    assert found["fallbacks"] == []
    assert [note.partition(":")[0] for note in found["notes"]] == ["int4-g128"]  # who loads it
    assert found["timings"]["total_s"] > 0
    assert found["versions"]["qtui"]
    card = (out / "README.md").read_text()
    assert "35 of 37 layers of demo quantised" in card
    assert "qtui export demo" in card

    model = AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        model(input_ids=tiny.ids(1, 4))
    stored: torch.dtype = getattr(torch, checkpoint.dtype)
    for row in body:
        weight = read_layer(checkpoint, row)
        expected = dequantized(weight, fmt, scale_dtype_for(stored), row.name).to(stored)
        assert torch.equal(model.get_submodule(row.name).weight, expected), row.name


def test_a_report_stands_on_stdout_and_the_document_in_its_file(
    run: Run, source: Path, tmp_path: Path
) -> None:
    out, document = tmp_path / "out", tmp_path / "found.json"
    recipe = tmp_path / "mine.toml"
    recipe.write_text(f'schema = "qtui.recipe/1"\n[layers]\n"{QUERY}" = "int8"\n')
    code, said, err = run(
        "export", str(source), "--recipe", str(recipe), *TO, "-o", str(out), "--json", str(document)
    )
    assert code == 0, err
    assert f"folder  {out}\n" in said
    assert "1 in int8; 1 stored as codes" in said
    assert "note: vLLM and SGLang" in said  # one of a fused group alone
    found = json.loads(document.read_text())
    assert found["recipe"] == {QUERY: "int8"}
    assert (out / "config.json").is_file()


def test_what_the_form_cannot_express_exits_with_5_and_names_the_layer(
    run: Run, source: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(f'schema = "qtui.recipe/1"\ndefault = "int8"\n[layers]\n"{QUERY}" = "nf4"\n')
    code, said, err = run(
        "export", str(source), "--recipe", str(recipe), *TO, "-o", str(tmp_path / "out")
    )
    assert (code, said) == (5, "")
    assert QUERY in err
    assert "nf4" in err
    assert "1 layer of this recipe" in err
    assert not list(tmp_path.glob("*out*"))


def test_a_recipe_that_changes_nothing_exits_with_5(run: Run, source: Path, tmp_path: Path) -> None:
    code, said, err = run(
        "export", str(source), "--format", "kept", *TO, "-o", str(tmp_path / "out")
    )
    assert (code, said) == (5, "")
    assert "nothing to export" in err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_replaced_only_when_asked(
    run: Run, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = ("export", str(source), "--format", "int8", *TO, "-o", str(out))
    assert run(*given)[0] == 0
    (out / "mine.txt").write_text("mine")
    code, said, err = run(*given)
    assert (code, said) == (2, "")
    assert str(out) in err
    assert "--overwrite" in err
    assert (out / "mine.txt").exists()
    assert run(*given, "--overwrite")[0] == 0
    assert not (out / "mine.txt").exists()


@pytest.mark.parametrize(
    ("given", "code", "says"),
    [
        (("--format", "int44"), 2, "int44"),
        (("--format", "int8", "--device", "cuda:63"), 2, "cuda:63"),
    ],
)
def test_what_cannot_be_carried_out_says_why(
    run: Run, source: Path, tmp_path: Path, given: tuple[str, ...], code: int, says: str
) -> None:
    found = run("export", str(source), *given, *TO, "-o", str(tmp_path / "out"))
    assert (found[0], found[1]) == (code, "")
    assert says in found[2]
    assert not (tmp_path / "out").exists()


# --- the job -------------------------------------------------------------------------------------


def test_an_export_waits_for_the_headers_and_needs_no_model(
    client: InProcess, tmp_path: Path
) -> None:
    client.send(p.Export(out=str(tmp_path / "out"), format="int8", ask="mine", check=False))
    events = until(client, ended("export"))
    kinds = [type(event) for event in events]
    assert kinds.index(p.LayersListed) < kinds.index(p.Exported)
    assert last_end(events).status == "done"
    (started,) = [e for e in events if isinstance(e, p.JobStarted) and e.kind == "export"]
    (written,) = [e for e in events if isinstance(e, p.Exported)]
    assert (started.ask, started.job) == ("mine", written.job)
    assert last_end(events).measured == len(written.quantised) == len(written.recipe)
    steps = [e for e in events if isinstance(e, p.Progress)]
    assert steps[-1].done == steps[-1].total == written.bytes
    assert not client.session.changed  # the session's own recipe stays
    assert client.session.notices[-1] == p.Notice("info", f"exported to {tmp_path / 'out'}")


def test_layers_that_cannot_hold_the_default_are_kept_and_told_of(
    client: InProcess, tmp_path: Path
) -> None:
    client.send(
        p.Export(out=str(tmp_path / "out"), format="q4_k", layers={QUERY: "int8"}, check=False)
    )
    events = until(client, ended("export"))
    assert last_end(events).status == "done"
    (written,) = [e for e in events if isinstance(e, p.Exported)]
    assert written.recipe == {QUERY: "int8"}
    told = {e.layer for e in events if isinstance(e, p.Fallback)}
    layers = client.session.layers
    body = {n for n, r in zip(layers.names, layers.roles, strict=True) if r == "linear"}
    assert told == body - {QUERY}  # rows of 64 hold no block of 256


def test_a_relative_path_is_refused(client: InProcess) -> None:
    client.send(p.Export(out="out", format="int8", ask="mine"))
    found = until(client, lambda event: isinstance(event, p.Refused))[-1]
    assert isinstance(found, p.Refused)
    assert (found.command, found.ask) == ("Export", "mine")
    assert "'out'" in found.message


def test_an_opening_that_fails_ends_an_export_that_waits(tmp_path: Path, prose: Path) -> None:
    (tmp_path / "empty").mkdir()
    found = in_process(str(tmp_path / "empty"))
    try:
        found.send(p.Open(str(tmp_path / "empty"), settings(prose), model=False))
        found.send(p.Export(out=str(tmp_path / "out"), format="int8", ask="mine", check=False))
        refused = until(found, lambda event: isinstance(event, p.Refused))[-1]
        assert isinstance(refused, p.Refused)
        assert (refused.ask, refused.exit_code) == ("mine", 3)
    finally:
        found.close()


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_an_export_that_is_given_up_leaves_nothing_behind_and_questions_go_on(
    client: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Given up halfway, with a folder begun; a histogram is drawn meanwhile."""
    whole = writer.writer_of("checkpoint")
    begun, never = threading.Event(), threading.Event()
    given_up = client._engine._lanes["export"].should_stop

    class Halting:
        check = whole.check

        def write(self, request: writer.Request) -> writer.Exported:
            def told(done: int, total: int, tensor: str) -> None:
                request.on_progress(done, total, tensor)
                if done:
                    begun.set()
                    assert any(given_up() or never.wait(0.01) for _ in range(6000))

            return whole.write(dataclasses.replace(request, on_progress=told))

    monkeypatch.setattr(writer, "writer_of", lambda _target: Halting())
    client.send(p.Export(out=str(tmp_path / "out"), format="int8", check=False))
    started = until(client, lambda e: isinstance(e, p.JobStarted) and e.kind == "export")[-1]
    assert isinstance(started, p.JobStarted)
    assert begun.wait(60)
    assert list(tmp_path.glob(".out*partial"))
    client.send(p.AskHistogram(QUERY))
    until(client, lambda event: isinstance(event, p.HistogramReady))
    if how == "cancel":
        client.send(p.Cancel(started.job))
        assert last_end(until(client, ended("export"))).status == "cancelled"
    else:
        client.close()
    assert not list(tmp_path.glob("*out*"))
    assert not list(tmp_path.glob(".out*"))
