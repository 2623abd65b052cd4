"""The library: the same results as the command line, live."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import engine
import qtui
from engine import protocol as p
from engine.client.in_process import JobError
from engine.errors import CheckpointError, FormatError, UsageError
from engine.library.model import Model
from tests import forked, tiny

SMALL = {"tokens": 512, "seq_len": 64, "device": "cpu"}


@pytest.fixture
def model(own_folders: Path) -> Iterator[Model]:
    with engine.open("demo", **SMALL) as opened:
        yield opened


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with rows that every format can take, but few of them."""
    folder = tmp_path_factory.mktemp("library") / "narrow"
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2}
    return tiny.build("llama", folder, dtype=torch.float16, **sizes)


@pytest.fixture
def narrow(source: Path, prose: Path, own_folders: Path) -> Iterator[Model]:
    with engine.open(str(source), text=str(prose), calib=str(prose), **SMALL) as opened:
        yield opened


def without_timings(document: object) -> object:
    assert isinstance(document, dict)
    return {key: part for key, part in document.items() if key not in ("timings", "resumed")}


def test_results_are_live_typed_and_equal_to_the_documents_of_commands(
    narrow: Model, source: Path, prose: Path, tmp_path: Path
) -> None:
    model = narrow
    triage = model.triage(["int4-g128"])
    sweep = model.sweep(["int4-g128"], exact="top:2")
    evaluation = model.evaluate("Q4_K_M")

    weights = [fact.layer for fact in triage if isinstance(fact, p.LayerWeights)]
    assert sorted(weights) == sorted(model.layers)
    seen = [type(fact) for fact in sweep]
    assert seen.index(p.Estimate) < seen.index(p.Sensitivity)
    scores = list(evaluation)
    assert scores[-1].done
    assert evaluation.document.recipe.kl == scores[-1].kl

    rows = sweep.rows()
    assert len(rows) == len(model.layers) == 16
    assert {"name", "format", "estimate.kl", "estimate.kl_se"} <= rows[0].keys()
    assert str(sweep).splitlines()[0].startswith("narrow: 952k parameters")
    assert "Q4_K_M" in str(evaluation)
    model.close()

    # From processes of their own, with the same facts.
    texts = ("--text", str(prose), "--calib", str(prose))
    given = ("--tokens", "512", "--seq-len", "64", "--device", "cpu", *texts)
    for result, command, arguments in (
        (triage, "triage", ("--formats", "int4-g128")),
        (sweep, "sweep", ("--formats", "int4-g128", "--exact", "top:2")),
        (evaluation, "eval", ("--recipe", "Q4_K_M")),
    ):
        document = forked.ran(command, str(source), *arguments, *given, folder=tmp_path)
        assert without_timings(result.to_dict()) == without_timings(document)


def test_results_under_way_at_once_keep_to_what_each_was_asked(narrow: Model) -> None:
    model = narrow
    first = model.sweep(["int4"], exact="none")
    other = model.sweep(["int8+awq"], direction="restore", exact="none")
    blocks = model.sweep(["int4"], by="block")
    triages = [model.triage([format]) for format in ("int4", "int8")]

    assert {(fact.direction, fact.format) for fact in other if isinstance(fact, p.Estimate)} == {
        ("restore", "int8+awq")
    }
    assert {fact.by for fact in blocks if isinstance(fact, p.Sensitivity)} == {"block"}
    assert {fact.format for fact in first if isinstance(fact, p.Estimate)} == {"int4-g128"}
    assert other.to_dict()["fallbacks"]
    assert blocks.to_dict()["fallbacks"] == first.to_dict()["fallbacks"] == []
    for triage, format in zip(triages, ("int4-g128", "int8"), strict=True):
        facts = list(triage)
        assert sorted(fact.layer for fact in facts if isinstance(fact, p.LayerWeights)) == sorted(
            model.layers
        )
        assert {fact.format for fact in facts if isinstance(fact, p.LayerError)} == {format}


@pytest.mark.usefixtures("checked_here")
def test_an_export_writes_the_folder(model: Model, tmp_path: Path) -> None:
    exported = model.export(tmp_path / "out", {"lm_head": "int8"})
    assert isinstance(list(exported)[-1], p.Exported)
    assert (tmp_path / "out" / "config.json").exists()
    assert exported.rows() == [{"name": "lm_head", "format": "int8"}]


def test_a_recipe_file_is_read_as_the_command_line_reads_it(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('schema = "qtui.recipe/1"\n[layers]\nlm_head = "int4-g128"\n')
    from_file = model.evaluate(path)
    from_layers = model.evaluate({"lm_head": "int4-g128"})
    assert from_file.document.recipe.nll == from_layers.document.recipe.nll


def test_what_cannot_be_asked_is_an_error_at_once(model: Model) -> None:
    with pytest.raises(JobError, match="unknown format 'int99'"):
        model.evaluate(format="int99")
    with pytest.raises(UsageError, match="give a recipe, a format, or both"):
        model.evaluate()
    with pytest.raises(JobError, match="no_such_layer"):
        model.evaluate({"no_such_layer": "int8"}).wait()
    with pytest.raises(UsageError, match="unknown setting 'tokns'"):
        engine.open("demo", tokns=5)
    with pytest.raises(UsageError, match="tokens"):
        engine.open("demo", tokens="many")


def test_a_path_without_a_checkpoint_is_an_error(own_folders: Path) -> None:
    with pytest.raises((CheckpointError, JobError), match="nothing-here"):
        engine.open(str(own_folders / "nothing-here"))


def test_a_cancelled_result_says_so(model: Model) -> None:
    sweep = model.sweep(["int3-g128"])
    sweep.cancel()
    with pytest.raises(JobError, match="cancelled"):
        sweep.wait()


def test_closing_ends_every_result_and_whatever_is_asked_after_it(own_folders: Path) -> None:
    model = engine.open("demo", **SMALL)
    under_way = model.triage(["int4-g128"])
    # Both wait for the model, which is loading yet; the second is announced only then.
    waiting = [model.sweep(["int4-g128"]), model.evaluate(format="int8")]
    model.close()
    model.close()
    for result in waiting:
        with pytest.raises(JobError, match="cancelled"):
            result.wait()
    with suppress(JobError):  # it may have come to its end
        under_way.wait()
    with pytest.raises(JobError, match="closed"):
        model.triage()


def test_a_result_that_waits_for_the_model_can_be_cancelled(model: Model) -> None:
    evaluation = model.evaluate(format="int8")
    evaluation.cancel()
    with pytest.raises(JobError, match="cancelled"):
        evaluation.wait()


def test_qtui_open_is_engine_open() -> None:
    assert qtui.open is engine.open


def test_a_diagnosis_has_verdict_fixes_and_the_errors_of_a_recipe(
    source: Path, prose: Path, own_folders: Path
) -> None:
    text = str(prose)
    with engine.open(str(source), text=text, calib=text, **SMALL, calib_tokens=512) as narrow:
        diagnosed(narrow)


def diagnosed(narrow: Model) -> None:
    layer = narrow.layers[1]
    found = narrow.diagnose("int4-g128", fixes=1, recipe={layer: "int4-g128"}, to="gptq")
    tried = [fact for fact in found if isinstance(fact, p.FormatTried)]
    (worst,) = {fact.layer for fact in tried}
    document = found.to_dict()
    assert document["schema"] == "qtui.diagnose/1"
    assert document["verdict"]["to"] == "gptq"
    assert [each["name"] for each in document["layers"] if each["fixes"]] == [worst]
    rows = found.rows()
    assert {row["format"] for row in rows if row["name"] == worst} >= {f.format for f in tried}
    errors = {row["name"] for row in rows if "clipping.relative" in row}
    assert errors == {layer}
    assert str(found).startswith("int4-g128 everywhere: PPL")
    with pytest.raises(UsageError, match="unknown export target"):
        narrow.diagnose(to="nowhere")


def test_calibration_sets_are_compared_as_the_command_line_does(narrow: Model, prose: Path) -> None:
    method = "int2-g32+gptq"
    found = narrow.calibrate(
        ["eval", "random"], method=method, samples=[1, 2], seq_lens=[32], texts=[prose]
    )
    seen = list(found)
    assert {type(each) for each in seen} >= {p.CalibrationCheck, p.CalibrationScore}
    document = found.document
    assert [(each.name, each.samples) for each in document.sets] == [
        (f"eval:{prose}", 1), (f"eval:{prose}", 2), ("random", 1), ("random", 2),
    ]  # fmt: skip
    rows = found.rows()
    assert [(row["name"], row["text"]) for row in rows][::2] == [
        (f"eval:{prose}", str(prose)), ("random", str(prose)),
    ]  # fmt: skip
    best = min(rows, key=lambda row: row["kl"])
    assert "above_best.kl" not in best
    worst = max(rows, key=lambda row: row["kl"])
    assert worst["above_best.kl"] == pytest.approx(worst["kl"] - best["kl"])
    assert rows[1]["above_more.samples"] == 1
    assert "above the best" in str(found)
    with pytest.raises(FormatError, match="int99"):
        narrow.calibrate(["random"], method="int99+gptq")
    with pytest.raises(JobError, match="no calibration set 'prise'"):
        narrow.calibrate(["prise"], method=method)
