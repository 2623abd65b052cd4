"""The importance matrix that qtui writes, and what +imatrix makes of one from a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader

from engine import protocol as p
from engine.checkpoint import open_checkpoint
from engine.checkpoint.imatrix import Entry, Imatrix, imatrix_bytes, read_imatrix
from engine.client import in_process
from engine.errors import CheckpointError, FormatError, InfeasibleError, UsageError
from engine.export.importance_file import write_importances
from engine.formats.grammar import parse_format
from engine.measure.calibration.approximate import approximated, solved_codes
from engine.measure.calibration.calibration import calibration_key, need_calibration
from engine.measure.counts import JobCounts
from engine.quant.gguf import quantize_gguf
from engine.store.facts import FactStore
from engine.workspace import Loaded
from tests import tiny
from tests.checkpoint.gguf.models import build
from tests.drive import ended, facts, load, settings, until
from tests.measure.calibration.test_calibration import finish, inputs_by_hook

DOWN = "model.layers.1.mlp.down_proj"
TEXT = "q4_1+imatrix"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    where = tmp_path_factory.mktemp("importance")
    return {arch: tiny.build(arch, where / arch) for arch in ("llama", "qwen3_moe")}


def opened(folder: Path, prose: Path, tmp_path: Path, **given: object) -> Loaded:
    chosen = {"calib": str(prose), "calib_tokens": 512, **given}
    return load(folder, FactStore(tmp_path / "facts.sqlite"), settings(prose, **chosen))


def write(loaded: Loaded, out: Path, **given: bool) -> p.ImatrixWritten:
    outcome = finish(write_importances(loaded, p.WriteImatrix(out=str(out), **given), "job"))[1]
    assert isinstance(outcome.result, p.ImatrixWritten)
    return outcome.result


@pytest.mark.parametrize("name", ["imatrix.gguf", "imatrix.dat"])
def test_it_has_the_mean_squares_of_all_inputs_by_llama_cpps_names(
    name: str, folders: dict[str, Path], prose: Path, tmp_path: Path
) -> None:
    loaded, out = opened(folders["llama"], prose, tmp_path), tmp_path / name
    written = write(loaded, out)
    assert written.left == {
        "model.embed_tokens": "an embedding multiplies no inputs",
        "lm_head": "llama-imatrix leaves out the head too; --head includes it",
    }
    found = read_imatrix(out)
    assert (written.weights, written.bytes) == (len(found.entries), out.stat().st_size)
    kinds = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    blocks = len(loaded.network.blocks)
    assert set(found.entries) == {f"blk.{i}.{k}.weight" for i in range(blocks) for k in kinds}
    x = inputs_by_hook(folders["llama"], finish(need_calibration(loaded))[1].windows.ids, DOWN)
    ours = found.entries["blk.1.ffn_down.weight"]
    if name.endswith("gguf"):
        assert ours.counts.tolist() == [512]
    assert np.allclose(ours.importance[0], x.square().mean(0).numpy(), rtol=1e-4)


def test_experts_have_a_row_each_and_the_head_is_there_if_asked(
    folders: dict[str, Path], prose: Path, tmp_path: Path
) -> None:
    loaded, out = opened(folders["qwen3_moe"], prose, tmp_path), tmp_path / "imatrix.gguf"
    write(loaded, out, head=True)
    found = read_imatrix(out).entries
    gate, up = (found[f"blk.1.ffn_{kind}_exps.weight"] for kind in ("gate", "up"))
    assert gate.sums.shape == (
        4,
        loaded.network.layers["model.layers.1.mlp.experts.gate_up_proj"].shape[-1],
    )
    assert np.array_equal(gate.sums, up.sums)
    assert gate.counts.sum() == 512 * loaded.network.model.config.num_experts_per_tok
    assert found["output.weight"].counts.tolist() == [512]


def test_a_file_weighs_as_the_text_that_it_was_made_of(
    folders: dict[str, Path], prose: Path, tmp_path: Path
) -> None:
    for arch, layer in (("llama", DOWN), ("qwen3_moe", "model.layers.1.mlp.experts.down_proj")):
        by_text, file = opened(folders[arch], prose, tmp_path), tmp_path / f"{arch}.gguf"
        write(by_text, file)
        by_file = opened(folders[arch], prose, tmp_path, imatrix=str(file), calib="nowhere.txt")
        told, ours = finish(approximated(by_file, layer, parse_format(TEXT), JobCounts()))
        theirs = finish(approximated(by_text, layer, parse_format(TEXT), JobCounts()))[1]
        assert torch.equal(ours, theirs)
        (calibrated,) = [each for each in told if isinstance(each, p.Calibrated)]
        assert (calibrated.text, calibrated.tokens) == (file.name, 512)
        codes = finish(solved_codes(by_file, {layer: parse_format(TEXT)}, JobCounts()))[1].forms
        assert torch.equal(codes[layer].approx(), ours)


def test_a_file_weighs_what_awq_has_scaled_too(
    folders: dict[str, Path], prose: Path, tmp_path: Path
) -> None:
    by_text, file = opened(folders["llama"], prose, tmp_path), tmp_path / "imatrix.gguf"
    write(by_text, file)
    by_file, fmt = (
        opened(folders["llama"], prose, tmp_path, imatrix=str(file)),
        parse_format("q4_1+awq:online+imatrix"),
    )
    ours, theirs = (
        finish(approximated(each, DOWN, fmt, JobCounts()))[1] for each in (by_file, by_text)
    )
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-3


def test_keys_tell_files_apart_and_text_from_files(
    folders: dict[str, Path], prose: Path, tmp_path: Path
) -> None:
    plain = opened(folders["llama"], prose, tmp_path)
    write(plain, tmp_path / "a.gguf")
    entry = Entry(np.ones((1, 128), np.float32), np.ones(1, np.float32))
    matrix = Imatrix({"blk.1.ffn_down.weight": entry}, (), 1, 1)
    (tmp_path / "b.gguf").write_bytes(imatrix_bytes(matrix))
    of_files = [
        opened(folders["llama"], prose, tmp_path, imatrix=str(tmp_path / f"{name}.gguf"))
        for name in "ab"
    ]

    def key(loaded: Loaded, *texts: str) -> object:
        return finish(calibration_key(loaded, map(parse_format, texts), "reference"))[1]

    found = [key(loaded, TEXT) for loaded in (plain, *of_files)]
    assert len(set(map(str, found))) == 3
    both = [key(loaded, TEXT, "int4-g32+gptq") for loaded in of_files]
    assert str(both[0]) != str(both[1])
    assert key(of_files[0], "int4-g32+gptq") == key(plain, "int4-g32+gptq")
    assert key(of_files[0], "q4_1") is None


def test_what_a_file_lacks_is_said_with_its_name(
    folders: dict[str, Path], prose: Path, tmp_path: Path
) -> None:
    file = tmp_path / "other.gguf"
    entry = Entry(np.ones((1, 60), np.float32), np.ones(1, np.float32))
    matrix = Imatrix({"blk.1.ffn_down.weight": entry}, (), 1, 1)
    file.write_bytes(imatrix_bytes(matrix))
    loaded = opened(folders["llama"], prose, tmp_path, imatrix=str(file))
    for layer, says in (
        (DOWN, "60 values for blk.1.ffn_down.weight, and the layer 128"),
        ("model.layers.0.mlp.up_proj", "no importance of blk.0.ffn_up.weight: leave '\\+imatrix'"),
    ):
        with pytest.raises(FormatError, match=says) as refused:
            finish(approximated(loaded, layer, parse_format(TEXT), JobCounts()))
        assert str(file) in str(refused.value)
    gone = opened(folders["llama"], prose, tmp_path, imatrix=str(tmp_path / "none"))
    with pytest.raises(CheckpointError, match="cannot be read"):
        finish(approximated(gone, DOWN, parse_format(TEXT), JobCounts()))


def test_it_is_not_written_over_anything_nor_from_a_file(
    folders: dict[str, Path], prose: Path, tmp_path: Path
) -> None:
    loaded, out = opened(folders["llama"], prose, tmp_path), tmp_path / "there.gguf"
    out.write_text("something")
    with pytest.raises(UsageError, match="exists already"):
        write(loaded, out)
    assert out.read_text() == "something"
    write(loaded, out, overwrite=True)
    with pytest.raises(UsageError, match="leave --imatrix out"):
        write(opened(folders["llama"], prose, tmp_path, imatrix=str(out)), tmp_path / "new.gguf")


def test_without_names_of_llama_cpp_it_says_so(
    folders: dict[str, Path], prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = opened(folders["llama"], prose, tmp_path)
    monkeypatch.setitem(loaded.opened.checkpoint.config, "model_type", "nothing_known")
    with pytest.raises(InfeasibleError, match="no architecture 'nothing_known'"):
        write(loaded, tmp_path / "imatrix.gguf")


def test_the_job_writes_and_an_evaluation_uses_it(
    folders: dict[str, Path], prose: Path, tmp_path: Path
) -> None:
    out, scores = tmp_path / "imatrix.gguf", []
    for given in ({}, {"imatrix": str(out)}):
        client = in_process(str(folders["llama"]))
        try:
            chosen = settings(prose, calib=str(prose), calib_tokens=512, fresh=True, **given)
            client.send(p.Open(str(folders["llama"]), chosen))
            until(client, ended("open"))
            if not given:
                client.send(p.WriteImatrix(out=str(out)))
                until(client, ended("imatrix"))
            client.send(p.Evaluate(layers={DOWN: TEXT}))
            events = until(client, ended("evaluate"))
            scores += [each.kl for each in facts(events, p.RecipeScore)]
        finally:
            client.close()
    assert len(scores) == 2
    assert scores[0] == scores[1] > 0


def test_the_bytes_are_those_of_the_quantiser_with_the_file(
    folders: dict[str, Path], prose: Path, tmp_path: Path
) -> None:
    loaded, file = opened(folders["llama"], prose, tmp_path), tmp_path / "imatrix.gguf"
    write(loaded, file)
    importance = torch.from_numpy(read_imatrix(file).entries["blk.1.ffn_down.weight"].importance)
    theirs = quantize_gguf(loaded.network.weight(DOWN), parse_format("q4_1"), DOWN, importance[0])
    found = finish(solved_codes(loaded, {DOWN: parse_format(TEXT)}, JobCounts()))[1].forms[DOWN]
    assert torch.equal(found.stored.blocks, theirs.blocks)


def test_a_gguf_file_has_the_bytes_that_the_importance_leads_to(
    prose: Path, tmp_path: Path
) -> None:
    folder = build("llama", tmp_path / "wide", hidden_size=256, intermediate_size=512)
    recipe = {
        "model.layers.0.mlp.up_proj": "iq2_xs+imatrix",
        "model.layers.1.mlp.down_proj": "q4_k+imatrix",
        "model.layers.1.self_attn.o_proj": "iq3_s",
    }
    client = in_process(str(folder))
    try:
        chosen = settings(prose, calib=str(prose), calib_tokens=512)
        client.send(p.Open(str(folder), chosen))
        until(client, ended("open"))
        client.send(p.WriteImatrix(out=str(tmp_path / "imatrix.gguf")))
        until(client, ended("imatrix"))
        client.send(p.Export(out=str(tmp_path / "out.gguf"), layers=recipe, to="gguf"))
        events = until(client, ended("export"))
        assert [e.status for e in events if isinstance(e, p.JobEnded)] == ["done"], events[-1]
    finally:
        client.close()
    entries = read_imatrix(tmp_path / "imatrix.gguf").entries
    blocks = {each.name: each for each in GGUFReader(tmp_path / "out.gguf").tensors}
    checkpoint = open_checkpoint(folder)
    for layer, name in zip(recipe, ("0.ffn_up", "1.ffn_down", "1.attn_output"), strict=True):
        weight, held = checkpoint.read(f"{layer}.weight"), recipe[layer]
        importance = torch.from_numpy(entries[f"blk.{name}.weight"].importance[0])
        fmt = parse_format(held.removesuffix("+imatrix"))
        given = importance if held.endswith("+imatrix") else None
        expected = quantize_gguf(weight, fmt, layer, given).blocks
        assert np.array_equal(blocks[f"blk.{name}.weight"].data, expected.numpy()), layer
