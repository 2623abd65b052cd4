"""Scores against llama.cpp's logits files: those that qtui writes, and plain loops."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import protocol as p
from engine.measure.evaluation.logits_file import read_logits
from tests import brute_force, tiny
from tests.measure.compare.test_comparing import compared, finished, only, rounded


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An original and a copy in 4 bits."""
    folder = tmp_path_factory.mktemp("logits")
    source = tiny.build("llama", folder / "original")
    return source, finished(source, folder / "int4", rounded("int4-g32"))


@pytest.fixture(scope="module")
def saved(
    pair: tuple[Path, Path], prose: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, p.DivergenceTable]:
    """A logits file of the original, and the table of the copy on the same windows."""
    file = tmp_path_factory.mktemp("saved") / "base.logits"
    found = only(compared(pair[0], prose, pair[1], save_logits=str(file)))
    assert found.score is not None
    assert found.score.table is not None
    return file, found.score.table


def test_the_table_goes_with_the_score(pair: tuple[Path, Path], prose: Path) -> None:
    found = only(compared(pair[0], prose, pair[1]))
    assert found.score is not None
    table = found.score.table
    assert table is not None
    assert table.tokens == found.score.tokens
    assert table.kld["mean"] == pytest.approx(found.score.kl, rel=1e-6)
    assert table.ln_ratio == pytest.approx(found.score.dnll, rel=1e-4, abs=1e-7)
    assert table.same_top == pytest.approx(found.score.top1)
    assert table.ppl == pytest.approx(found.score.ppl, rel=1e-6)


def test_what_is_saved_are_the_original_s_probabilities(
    pair: tuple[Path, Path], saved: tuple[Path, p.DivergenceTable]
) -> None:
    file = read_logits(saved[0])
    assert file.vocabulary == tiny.VOCABULARY
    assert file.windows.first == file.windows.seq_len // 2
    model = brute_force.load(pair[0])
    with torch.no_grad():
        logits = model(file.windows.ids[:3]).logits
    expected = logits[:, file.windows.first : -1].log_softmax(-1)
    for chunk in range(3):
        apart = (file.log_probs(chunk) - expected[chunk]).abs().max()
        assert float(apart) < 16 / 65535


@pytest.mark.parametrize("alone", [False, True])
def test_a_file_is_the_reference(
    alone: bool, pair: tuple[Path, Path], saved: tuple[Path, p.DivergenceTable], prose: Path
) -> None:
    """With an original for the weights, and without one."""
    source, folder = pair
    opened = folder if alone else source
    session = compared(opened, prose, folder, score=False, alone=alone, logits=str(saved[0]))
    found = only(session)
    assert session.model is None
    assert bool(found.layers) is not alone
    (table,) = found.tables.values()
    file = read_logits(saved[0])
    model = brute_force.load(folder)
    kld, same, first = [], [], file.windows.first
    with torch.no_grad():
        for chunk, ids in enumerate(file.windows.ids):
            mine = model(ids[None]).logits[0, first:-1].double().log_softmax(-1)
            base = file.log_probs(chunk).double()
            kld.append((base.exp() * (base - mine)).sum(-1))
            same.append(base.argmax(-1) == mine.argmax(-1))
    whole = torch.cat(kld)
    assert table.tokens == len(whole) == file.windows.count * file.windows.targets
    assert table.kld["mean"] == pytest.approx(float(whole.mean()), rel=1e-3)
    assert table.kld["max"] == pytest.approx(float(whole.max()), rel=1e-3)
    assert table.same_top == pytest.approx(float(torch.cat(same).double().mean()))


def test_the_original_itself_differs_by_rounding_alone(
    pair: tuple[Path, Path], saved: tuple[Path, p.DivergenceTable], prose: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(pair[0], copy)
    (file,) = copy.glob("*.safetensors")
    save_file(load_file(file), file, {"format": "pt", "note": "a copy"})
    found = only(compared(pair[0], prose, copy, score=False, logits=str(saved[0])))
    (table,) = found.tables.values()
    assert abs(table.kld["mean"]) < 1e-5
    assert table.same_top > 0.99
