"""Figures of a layer: what their declarations promise about JSON, CSV and one another."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import msgspec
import pytest

from engine.report import schema as s
from engine.report.entry import Template
from engine.report.figures import figures
from engine.report.figures.declaration import Document
from engine.report.figures.registry import column_figures, csv_figures, filter_figures
from tests.docs.reference import keys


def leaves(struct: type) -> Iterator[str]:
    """Keys that hold a value, not a part."""
    found = [path for path, *_ in keys(struct)]
    for path in found:
        if not any(other.startswith(f"{path}.") for other in found):
            yield path


@pytest.mark.parametrize(
    ("document", "entry", "of_the_entry"),
    [
        ("triage", s.TriageLayer, set()),
        ("sweep", s.SweepLayer, {"format"}),
        (
            "diagnose",
            s.DiagnosedLayer,
            {each for each in leaves(s.DiagnosedLayer) if "fix" in each},
        ),
    ],
)
def test_every_key_of_a_layers_entry_is_a_figure(
    document: Document, entry: type, of_the_entry: set[str]
) -> None:
    declared = {
        path.path.split("[")[0]
        for each in figures()
        for path in each.json
        if path.document == document
    }
    assert declared | of_the_entry == set(leaves(entry))


def test_columns_and_words_have_ids_and_names_of_their_own() -> None:
    names = [each.csv.name for each in csv_figures() if each.csv is not None]
    assert len(names) == len(set(names))
    assert all(each.quantity.number for each in filter_figures().values())
    assert all(each.help and each.title for each in figures())
    assert {each.id for each in column_figures()} <= {each.id for each in figures()}


def test_csv_figures_beside_a_column_are_saved_with_it() -> None:
    saved = {each.id for each in csv_figures(["layer", "kl"])}
    assert {"layer", "kind", "kl", "kl_se", "doubt", "format", "tokens"} <= saved
    assert not saved & {"dnll", "error", "mean", "holds"}
    assert {each.id for each in csv_figures()} > saved


OUTLIERS = ["outliers.sigma", "outliers.count", "outliers.fraction", "outliers.max_abs"]


def test_an_entry_leaves_out_what_is_not_known_and_writes_null_for_what_is_not_finite() -> None:
    about = {"name": "a", "kind": "q", "block": 0, "shape": [2, 3], "dtype": "float16"}
    template = Template(s.TriageLayer, [*about, *OUTLIERS, "kurtosis", "figures.mine", "ends[0]",
                                        "ends[1]"])  # fmt: skip
    full = template.fill([*about.values(), 4.0, 1, math.inf, 2.0, math.nan, 1.5, -1.0, math.nan])
    assert isinstance(full, s.TriageLayer)
    assert json.loads(msgspec.json.encode(full)) == {
        **about, "outliers": {"sigma": 4.0, "count": 1, "fraction": None, "max_abs": 2.0},
        "kurtosis": None, "figures": {"mine": 1.5}, "ends": [-1.0, None],
    }  # fmt: skip
    empty = template.fill([*about.values(), *[None] * 8])
    assert json.loads(msgspec.json.encode(empty)) == about
