"""What may go wrong around a measurement: told, survived, and never a wrong figure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import protocol as p
from engine.client import in_process
from engine.session import Session, apply, predict
from tests import tiny
from tests.drive import ended, facts, settings, until


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.build("llama", tmp_path / "model")


def opened(model: Path, chosen: p.Settings, *commands: p.AnyCommand) -> list[p.AnyEvent]:
    client = in_process(str(model))
    try:
        for command in (p.Open(str(model), chosen), *commands):
            client.send(command)
        return until(client, ended("sweep"))
    finally:
        client.close()


def one_layer(dtype: str, shape: tuple[int, int]) -> Session:
    """A session whose table has one layer, called ``a``."""
    session = Session()
    listed = p.LayersListed(
        names=["a"], kinds=["q"], blocks=[0], roles=["linear"], shapes=[shape], dtypes=[dtype],
        other_bytes=0,
    )  # fmt: skip
    apply(session, listed)
    return session


def last_end(events: list[p.AnyEvent]) -> p.JobEnded:
    end = events[-1]
    assert isinstance(end, p.JobEnded)
    return end


def test_what_could_not_be_opened_can_be_opened_again(model: Path, prose: Path) -> None:
    config = (model / "config.json").read_text()
    (model / "config.json").unlink()
    client = in_process(str(model))
    try:
        for command in (p.Open(str(model), settings(prose)), p.Triage(), p.Sweep()):
            client.send(command)
        assert last_end(until(client, ended("sweep"))).exit_code == 3
        (model / "config.json").write_text(config)
        for command in (p.Open(str(model), settings(prose)), p.Triage(), p.Sweep()):
            client.send(command)
        events = until(client, ended("sweep"))
        assert last_end(events).status == "done"
        assert facts(events, p.LayerWeights)
    finally:
        client.close()


def test_a_cancelled_opening_is_not_the_last(model: Path, prose: Path) -> None:
    client = in_process(str(model))
    try:
        client.send(p.Open(str(model), settings(prose)))
        started = until(client, lambda e: isinstance(e, p.JobStarted))[-1]
        assert isinstance(started, p.JobStarted)
        client.send(p.Cancel(started.job))
        until(client, ended("open"))
        client.send(p.Open(str(model), settings(prose)))
        client.send(p.Sweep())
        assert last_end(until(client, ended("sweep"))).status == "done"
    finally:
        client.close()


def test_a_full_disk_ends_the_job_and_says_so(model: Path, prose: Path) -> None:
    client = in_process(str(model))
    try:
        client.send(p.Open(str(model), settings(prose)))
        until(client, ended("open"))
        engine = client._engine
        databases = engine._facts._file.connection, engine._journal._db
        for db in databases:
            pages = db.execute("PRAGMA page_count").fetchone()[0]
            db.execute(f"PRAGMA max_page_count = {pages}")
        client.send(p.Sweep())
        events = until(client, lambda e: isinstance(e, p.JobEnded | p.Refused))
        told = events[-1]
        assert isinstance(told, p.JobEnded | p.Refused)
        assert "full" in told.message
        assert not engine.busy()
        for db in databases:
            db.execute("PRAGMA max_page_count = 1073741823")
        client.send(p.Sweep())
        assert last_end(until(client, ended("sweep"))).status == "done"
    finally:
        client.close()


def test_another_tokenizer_or_another_cut_of_the_windows_reuses_nothing(
    model: Path, prose: Path
) -> None:
    opened(model, settings(prose), p.Sweep())
    end = last_end(opened(model, settings(prose, stride=31), p.Sweep()))
    assert end.resumed == 0  # as many targets, other windows
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    a, b = "e", "o"
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert last_end(opened(model, settings(prose), p.Sweep())).resumed == 0


def test_a_checkpoint_replaced_in_its_folder_keeps_nothing_of_the_old_one(
    model: Path, prose: Path
) -> None:
    opened(model, settings(prose), p.Triage(), p.Sweep())
    state = load_file(model / "model.safetensors")
    save_file(
        {name: tensor.half() for name, tensor in state.items()},
        model / "model.safetensors",
        metadata={"format": "pt"},
    )
    client = in_process(str(model))
    try:
        client.send(p.Open(str(model), settings(prose), model=False))
        until(client, ended("open"))
        session = client.session
        assert session.recipe() == {}
        assert set(session.layers.holds) == {"fp16"}
        assert session.layers.weights == [None] * len(session.layers.names)
        assert session.effects.measured == {}
        assert session.bits_per_weight() == 16
    finally:
        client.close()


def test_logits_that_overflow_are_one_sentence(model: Path, prose: Path) -> None:
    state = load_file(model / "model.safetensors")
    state["lm_head.weight"] *= 60_000
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})
    end = last_end(opened(model, settings(prose, dtype="fp16"), p.Sweep()))
    assert end.status == "failed"
    assert "--dtype bf16" in end.message


def test_commands_before_opening_are_refused_and_change_nothing(model: Path) -> None:
    client = in_process(str(model))
    try:
        commands: tuple[p.AnyCommand, ...] = (
            p.Triage(ask="1"), p.Sweep(ask="2"), p.Evaluate("int8", ask="3"), p.Undo(),
            p.SetFormat(("a",), "int8"), p.Cancel("x"), p.AskHistogram("a"),
        )  # fmt: skip
        for command in commands:
            client.send(command)
        asks = []
        for command in commands:
            event = client.receive(10)
            assert isinstance(event, p.Refused)
            assert event.command == type(command).__name__
            asks.append(event.ask)
        assert asks[:3] == ["1", "2", "3"]
        assert client.session.seq == 0
    finally:
        client.close()


def test_a_prediction_beyond_all_numbers_is_infinite() -> None:
    session = one_layer("float16", (2, 2))
    awful = p.Sensitivity(
        layer="a", format="int2-g128", kl=900.0, kl_se=1.0, dnll=900.0, dnll_se=1.0,
        dppl=1.0, dppl_low=1.0, dppl_high=1.0, tokens=8,
    )  # fmt: skip
    apply(session, p.Learned(("b",), (p.Baseline(1.0, 0.1, 2.7, 8), awful)))
    change = p.RecipeChanged(
        how="set", layers=["a"], before=["fp16"], after=["int2-g128"], bits=[16]
    )
    apply(session, change)
    predicted = predict(session)
    assert predicted is not None
    assert predicted.ppl == float("inf")


def test_what_comes_late_does_not_undo_an_end() -> None:
    session = Session()
    apply(
        session,
        p.JobStarted(job="1", kind="open", command=p.Open("demo", p.Settings()), title="open"),
    )
    apply(session, p.Stage("loading weights", 1, 2))
    assert session.stage is not None
    apply(session, p.JobEnded(job="1", kind="open", status="done"))
    apply(session, p.Stage("loading weights", 2, 2))
    apply(session, p.Progress(job="1", done=1, total=2))
    assert session.stage is None
    assert session.jobs["1"].status == "done"
    assert session.jobs["1"].done == session.jobs["1"].total


def test_errors_in_other_formats_stay_known() -> None:
    session = one_layer("float16", (2, 2))

    def found(format: str) -> p.LayerWeights:
        return p.LayerWeights(
            layer="a", outliers=p.Outliers(4.0, 0, 0.0, 1.0), range_ratio=1.0, waste=0.0,
            kurtosis=0.0, nan=0, inf=0, zero_rows=0,
            errors={format: p.WeightError(1.0, 0.1, 1.0, 1.0, 20.0)},
        )  # fmt: skip

    apply(session, p.Learned(("1",), (found("int4-g128"),)))
    apply(session, p.Learned(("2",), (found("int8"),)))
    known = session.layers.weights[0]
    assert known is not None
    assert known.errors.keys() == {"int4-g128", "int8"}


def test_kept_layers_of_an_8_bit_checkpoint_are_as_large_as_stored() -> None:
    from engine.recipes import changes as recipes

    session = one_layer("float8_e4m3fn", (128, 128))
    before = session.artefact_bytes()
    assert before == 128 * 128
    change = recipes.change(session, ["a"], "int4-g128")
    assert change is not None
    apply(session, change)
    assert session.artefact_bytes() < before
    apply(session, recipes.undo(session))
    assert session.artefact_bytes() == before


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_the_dtype_it_runs_in_never_changes_the_quantised_weight(
    weights: torch.dtype, tmp_path: Path, prose: Path
) -> None:
    """A bf16 run of an fp32 checkpoint holds what the fp32 run holds, cast last."""
    from engine.checkpoint import list_layers, open_checkpoint, read_layer
    from engine.formats.grammar import parse_format
    from engine.measure.calibration.approximate import approximation
    from engine.quant.quantize import dequantized
    from engine.store.facts import FactStore
    from tests.drive import load

    source = tiny.build("llama", tmp_path / "model", dtype=weights)
    loaded = load(source, FactStore(tmp_path / "f.sqlite"), settings(prose, dtype="bf16"))
    checkpoint = open_checkpoint(source)
    row = next(row for row in list_layers(checkpoint) if row.kind == "down_proj")
    scale_dtype = torch.bfloat16 if weights == torch.bfloat16 else torch.float16
    expected = dequantized(read_layer(checkpoint, row), parse_format("int4-g32"), scale_dtype)
    found = approximation(loaded, row.name, parse_format("int4-g32"))
    assert torch.equal(found, expected.to(torch.bfloat16))
