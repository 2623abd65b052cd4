"""Estimates, directions and formulas in what is saved."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from engine import protocol as p
from engine.session import apply, correction, predict
from qtui.saved.forms import as_csv, as_tsv
from qtui.saved.saving import save
from qtui.saved.view import SavedTable
from tests.qtui import replay as r
from tests.qtui.saving import BROKEN, LAYER, lines_of_csv, session, view


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_table_has_estimates_beside_measurements_and_says_how_they_agree() -> None:
    found = session()
    for event in (r.estimated([r.FORMAT, "int2-g128"]), r.agreement()):
        apply(found, event)
    heading, rows = lines_of_csv(save("table", "rows.csv", view(found)).path)
    fit = correction(found, r.EFFECTS)
    assert fit is not None
    for row in rows:
        guess = found.estimate(found.index[row["layer"]], r.EFFECTS)
        assert guess is not None
        assert float(row["estimated_kl_nats_per_token"]) == guess.kl
        assert float(row["estimated_kl_se_nats_per_token"]) == guess.kl_se
        assert float(row["estimated_dnll_nats_per_token"]) == guess.dnll
        assert float(row["corrected_kl_nats_per_token"]) == fit.kl(guess.kl)
        assert row["direction"] == "degrade"
        if row["source"] == "estimated":
            assert float(row["kl_nats_per_token"]) == fit.kl(guess.kl)
    assert {row["source"] for row in rows} == {"measured", "estimated"}
    assert any("0.978 (KL)" in line for line in heading)
    _, rows = lines_of_csv(save("table", "two.csv", view(found, format="int2-g128")).path)
    assert {row["doubt"] for row in rows} == {r.DOUBT}
    assert "--exact none" in save("table", "two.csv", view(found, format="int2-g128")).command


def test_a_table_of_restoring_says_so_and_its_command_measures_it_again() -> None:
    found = session()
    for event in r.swept(direction="restore"):
        apply(found, event)
    shown = view(found, direction="restore")
    saved = save("table", ".", shown)
    assert saved.path.name == "demo-restore-int4-g128.csv"
    heading, rows = lines_of_csv(saved.path)
    assert "restoring of" in heading[0]
    assert saved.command.endswith("--formats int4-g128 --direction restore")
    assert {row["direction"] for row in rows} == {"restore"}
    row = next(row for row in rows if row["layer"] == "lm_head")
    assert float(row["kl_nats_per_token"]) == 1.3 * 0.00838


def test_what_is_below_the_floor_says_so() -> None:
    found = session()
    apply(found, p.Learned(("c",), (p.Control("lm_head", 0.0, 0.0, 1e-4, 5e-4),)))
    _, rows = lines_of_csv(save("table", "rows.csv", view(found)).path)
    below = [row for row in rows if row["below_floor"] == "true"]
    assert below
    assert all(abs(float(row["kl_nats_per_token"])) < 5e-4 for row in below)


FORMULAS = ("=HYPERLINK(1)", "+1", "-2+3", "@SUM(A1)")


@pytest.mark.parametrize("form", ["csv", "tsv"])
def test_text_that_a_spreadsheet_would_run_has_an_apostrophe_and_numbers_have_none(
    form: str,
) -> None:
    table = SavedTable(
        schema="x/1", title="t", command="qtui", columns=("=column", "value"),
        rows=[*((text, -0.25) for text in FORMULAS), ("plain", -1), ("a-b", None)],
    )  # fmt: skip
    if form == "tsv":
        rows = [line.split("\t") for line in as_tsv(table).splitlines()]
    else:
        rows = list(csv.reader(line for line in as_csv(table).splitlines() if line[0] != "#"))
    assert rows[0] == ["'=column", "value"]
    assert [row[0] for row in rows[1:]] == [*(f"'{text}" for text in FORMULAS), "plain", "a-b"]
    assert [row[1] for row in rows[1:]] == ["-0.25"] * 4 + ["-1", ""]


def test_a_layer_with_the_name_of_a_formula_is_saved_as_text() -> None:
    found = r.folded(*r.opening(["=cmd|' /C calc'!A0", "lm_head"]))
    _, rows = lines_of_csv(save("table", "rows.csv", view(found, rows=(0, 1))).path)
    assert [row["layer"] for row in rows] == ["'=cmd|' /C calc'!A0", "lm_head"]


def test_a_recipe_that_is_not_measured_yet_carries_its_prediction() -> None:
    found = r.folded(*r.opening(), r.estimated(["int3-g128"]))
    apply(found, r.changed(found, [LAYER, "lm_head"], "int3-g128"))
    apply(found, r.changed(found, [BROKEN], "nf4"))
    predicted = predict(found)
    assert predicted is not None
    text = save("recipe", "r.toml", view(found)).path.read_text()
    assert f"ppl {predicted.ppl!r}, kl {predicted.kl!r} nats per token, without 1 unknown" in text
