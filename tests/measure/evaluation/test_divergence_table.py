"""The tables of llama.cpp, against float64 NumPy, and against what llama.cpp itself printed."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

from engine.errors import TextError
from engine.measure.evaluation.divergence import Positions, at_positions
from engine.measure.evaluation.divergence_table import divergence_table
from engine.measure.evaluation.logits_file import (
    LogitsFile,
    against_file,
    encoded,
    read_logits,
    write_chunk,
    write_header,
)
from engine.protocol import DELTA_P_QUANTILES, KLD_QUANTILES, DivergenceTable
from tests.measure.evaluation.logits_example import (
    CHUNKS,
    CONTEXT,
    COUNTED,
    VOCABULARY,
    WRITTEN,
    Array,
    example,
)

FILE = WRITTEN / "llama_cpp.logits"


def printed() -> dict[str, list[float]]:
    """What llama.cpp printed, by its names: a figure, or a figure and its uncertainty."""
    found = {}
    for line in (WRITTEN / "llama_cpp.txt").read_text().splitlines():
        if ":" in line:
            name, _, numbers = line.partition(":")
            found[" ".join(name.split())] = [
                float(each) for each in re.findall(r"-?\d+\.\d+", numbers)
            ]
    return found


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(-1, keepdims=True)
    found: Array = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return found


def test_figures_are_those_of_numpy_in_float64() -> None:
    tokens, base, other = example()
    before = torch.from_numpy(base)
    targets = torch.from_numpy(tokens[:, -COUNTED:].astype(np.int64))
    parts = [
        at_positions(
            before[rows],
            torch.logsumexp(before[rows], -1),
            torch.from_numpy(other)[rows].clone(),
            targets[rows],
        )
        for rows in (slice(0, 2), slice(2, CHUNKS))
    ]
    found = divergence_table(parts)

    p, q = log_softmax(base.astype(np.float64)), log_softmax(other.astype(np.float64))
    kld = (np.exp(p) * (p - q)).sum(-1).ravel()
    at = tokens[:, -COUNTED:, None].astype(np.int64)
    nll_base = -np.take_along_axis(p, at, -1).ravel()
    nll = -np.take_along_axis(q, at, -1).ravel()
    delta = np.exp(-nll) - np.exp(-nll_base)
    tokens_counted = len(kld)

    def se(values: Array) -> float:
        return float(values.std(ddof=1)) / math.sqrt(len(values))

    def close(value: float, expected: float) -> None:
        assert value == pytest.approx(expected, rel=2e-4, abs=2e-6)

    assert found.tokens == tokens_counted == CHUNKS * COUNTED
    close(found.ppl, math.exp(nll.mean()))
    close(found.ppl_base, math.exp(nll_base.mean()))
    close(found.ppl_se, math.exp(nll.mean()) * se(nll))
    close(found.ppl_base_se, math.exp(nll_base.mean()) * se(nll_base))
    close(found.correlation, float(np.corrcoef(nll, nll_base)[0, 1]))
    close(found.ln_ratio, float((nll - nll_base).mean()))
    close(found.ln_ratio_se, se(nll - nll_base))
    close(found.kld["mean"], float(kld.mean()))
    close(found.kld["mean_se"], se(kld))
    close(found.delta_p["mean"], float(delta.mean()))
    close(found.delta_p["mean_se"], se(delta))
    close(found.delta_p["rms"], float(np.sqrt((delta**2).mean())))
    close(found.delta_p["rms_se"], se(delta**2) / 2 / float(np.sqrt((delta**2).mean())))
    for name, fraction in KLD_QUANTILES.items():
        close(found.kld[name], float(np.quantile(kld, fraction)))
    for name, fraction in DELTA_P_QUANTILES.items():
        close(found.delta_p[name], float(np.quantile(delta, fraction)))
    same = float((p.argmax(-1) == q.argmax(-1)).mean())
    close(found.same_top, same)
    close(found.same_top_se, math.sqrt(same * (1 - same) / (tokens_counted - 1)))


def of_file(file: LogitsFile, other: Array) -> DivergenceTable:
    parts: list[Positions] = []
    for chunk in range(file.windows.count):
        targets = file.windows.ids[chunk, file.windows.first + 1 :]
        parts.append(against_file(file.log_probs(chunk), torch.from_numpy(other[chunk]), targets))
    return divergence_table(parts)


def test_tables_are_those_that_llama_cpp_prints_of_the_same_file() -> None:
    found, theirs = of_file(read_logits(FILE), example()[2]), printed()
    tables = {"KLD": (found.kld, 1.0, 2e-6), "Δp": (found.delta_p, 100.0, 6e-4)}
    names = {"mean": "Mean", "max": "Maximum", "min": "Minimum", "median": "Median"}
    checked = 0
    for kind, (table, unit, close) in tables.items():
        for name, value in table.items():
            if name.endswith("_se") or name == "rms":
                continue
            said = names.get(name) or f"{float(name[:-1]):.1f}%"
            numbers = theirs[f"{said} {kind}"]
            # It interpolates in float32.
            assert unit * value == pytest.approx(numbers[0], rel=1e-5, abs=close), (kind, name)
            if name == "mean":
                assert unit * table["mean_se"] == pytest.approx(numbers[1], abs=close)
            checked += 1
    assert checked == len(KLD_QUANTILES) + len(DELTA_P_QUANTILES) + 2
    assert [100 * found.delta_p[each] for each in ("rms", "rms_se")] == pytest.approx(
        theirs["RMS Δp"], abs=6e-4
    )
    assert [100 * found.same_top, 100 * found.same_top_se] == pytest.approx(
        theirs["Same top p"], abs=6e-4
    )
    assert [found.ppl, found.ppl_se] == pytest.approx(theirs["Mean PPL(Q)"], rel=1e-6)
    assert [found.ppl_base, found.ppl_base_se] == pytest.approx(theirs["Mean PPL(base)"], rel=1e-6)
    ratio = theirs["Mean ln(PPL(Q)/PPL(base))"]
    assert [found.ln_ratio, found.ln_ratio_se] == pytest.approx(ratio, abs=1e-6)
    correlation = theirs["Cor(ln(PPL(Q)), ln(PPL(base)))"]
    assert [100 * found.correlation] == pytest.approx(correlation, abs=6e-3)


def test_a_file_is_written_as_llama_cpp_writes_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    file, (tokens, base, _) = read_logits(FILE), example()
    assert np.array_equal(file.windows.ids.numpy(), tokens)
    assert (file.vocabulary, file.windows.first) == (VOCABULARY, CONTEXT // 2)
    mine = tmp_path_factory.mktemp("logits") / "mine"
    with mine.open("wb") as out:
        write_header(out, file.windows, VOCABULARY)
        for chunk in torch.from_numpy(base):
            write_chunk(out, chunk.split(7))
    ours, theirs = mine.read_bytes(), FILE.read_bytes()
    assert len(ours) == len(theirs)
    start = 20 + 4 * tokens.size
    assert ours[:start] == theirs[:start]
    rows = [
        np.frombuffer(data[start:], "<u2").reshape(CHUNKS * COUNTED, -1) for data in (ours, theirs)
    ]
    least = [np.ascontiguousarray(each[:, 2:4]).view("<f4") for each in rows]
    np.testing.assert_allclose(*least, rtol=1e-6)  # the sum of exponentials is in another order
    for each in rows:
        assert np.array_equal(each[:, :2], rows[0][:, :2])
        # llama.cpp leaves what it does not use of the padding as it was
        assert np.array_equal(each[:, 4 : 4 + VOCABULARY], rows[0][:, 4 : 4 + VOCABULARY])


def test_what_a_file_says_is_what_it_was_made_from() -> None:
    file, base = read_logits(FILE), example()[1]
    for chunk in range(CHUNKS):
        said = file.log_probs(chunk).double().numpy()
        exact = log_softmax(base[chunk].astype(np.float64))
        kept = exact > exact.max(-1, keepdims=True) - 16
        assert kept.mean() > 0.5
        assert np.abs(said - exact)[kept].max() < 16 / 65535


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: b"_logitz_" + data[8:], "does not begin with _logits_"),
        (lambda data: data[:10], "does not begin with _logits_"),
        (lambda data: data[:-1], "and its header says"),
        (lambda data: data + b"\0", "and its header says"),
        (lambda data: data[:8] + b"\xff" * 12 + data[20:], "chunks of -1 tokens"),
        (lambda data: data[:20] + b"\xff\xff\xff\x7f" + data[24:], "outside its vocabulary"),
    ],
)
def test_a_damaged_file_is_refused(
    damage: object, said: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert callable(damage)
    file = tmp_path_factory.mktemp("logits") / "damaged"
    file.write_bytes(damage(FILE.read_bytes()))
    with pytest.raises(TextError, match=said):
        read_logits(file)


def test_a_scale_that_is_not_finite_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("logits") / "damaged"
    data = bytearray(FILE.read_bytes())
    start = 20 + 4 * CHUNKS * CONTEXT
    data[start : start + 4] = np.float32(np.nan).tobytes()
    file.write_bytes(bytes(data))
    with pytest.raises(TextError, match="scale in chunk 0"):
        read_logits(file).log_probs(0)


def test_equal_rows_are_stored_as_one_level() -> None:
    row = encoded(torch.full((1, 8), 3.0))
    assert not row[0, :2].any()
    assert not row[0, 4:].any()
    assert row[0, 2:4].view("<f4")[0] == pytest.approx(-math.log(8))
