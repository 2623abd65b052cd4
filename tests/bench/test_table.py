"""The table of what each format costs, from documents to Markdown."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine.formats.grammar import parse_format
from engine.recipes.mixes import NAMES
from qtui import cli
from tests.bench.table import (
    BEGIN,
    END,
    FORMATS,
    PAGE,
    RECIPES,
    between_markers,
    row_of,
    table_of,
)
from tests.qtui.scripted import install


def document(name: str, bits: float, kl: float, **more: Any) -> dict[str, Any]:
    return {
        "protocol": {
            "text": "stdlib", "tokens": 4096, "seq_len": 256, "dtype": "float32", "device": "cpu",
        },
        "baseline": {"ppl": 15.8},
        "recipe": {
            "name": name, "bits_per_weight": bits, "kl": kl, "kl_se": 0.0001, "ppl": 16.0,
            "top1_agreement": 0.9,
        },
        "fallbacks": [],
        **more,
    }  # fmt: skip


def test_lines_go_by_bits_and_then_by_kl() -> None:
    found = [
        document("int8", 8.06, 0.0001),
        document("int4-g128", 4.156, 0.020),
        document("int4-g128+clip", 4.157, 0.018),
        document("int3-g128", 3.15, 0.10),
    ]
    text = table_of([row_of("--format", each) for each in found], found[0])
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in lines] == [
        "int3-g128",
        "int4-g128+clip",
        "int4-g128",
        "int8",
    ]
    assert "| 3.15 | 100.00 ± 0.10 | 16.00 | 90.0% |" in lines[0]
    assert "4,096 tokens of stdlib in windows of 256, float32 on cpu" in text
    assert "†" not in text


def test_layers_that_gave_way_are_counted() -> None:
    layers = [{"layer": name, "format": "q4_k", "why": ""} for name in ("a", "b", "a")]
    found = document("Q4_K_M", 4.9, 0.01, fallbacks=layers)
    text = table_of([row_of("--recipe", found)], found)
    assert "| recipe `Q4_K_M` (2†) |" in text
    assert "† Layers that cannot hold it" in text


def test_a_document_of_the_command_line_becomes_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch)
    with pytest.raises(SystemExit):
        cli.main(["eval", "demo", "--format", "int4-g128", "--json", "-"])
    found = json.loads(capsys.readouterr().out)
    row = row_of("--format", found)
    assert (row.name, row.bits) == ("int4-g128", found["recipe"]["bits_per_weight"])
    assert f"| {row.bits:.2f} |" in table_of([row], found)


def test_the_table_takes_the_place_of_the_one_before() -> None:
    text = f"# A\n{BEGIN}\nold\n{END}\nrest\n"
    once = between_markers(text, "new")
    assert once == f"# A\n{BEGIN}\nnew\n{END}\nrest\n"
    assert between_markers(once, "new") == once
    for broken in ("no markers", f"{END} {BEGIN}"):
        with pytest.raises(ValueError, match="has no"):
            between_markers(broken, "new")


def test_the_readme_has_a_place_for_it_and_names_are_those_of_the_grammar() -> None:
    between_markers(PAGE.read_text(encoding="utf-8"), "")
    assert len({str(parse_format(text)) for text in FORMATS}) == len(FORMATS)
    assert sorted(RECIPES) == sorted(NAMES)
