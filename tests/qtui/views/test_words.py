"""Words and figures as they are drawn."""

from __future__ import annotations

import math
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from engine.report import wording as n
from engine.report.characters import cell_width
from engine.report.tables.cells import figure, share
from qtui.views import text as t


@given(st.text())
def test_nothing_printable_steers_a_terminal(text: str) -> None:
    shown = t.printable(text)
    assert not any(unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") for char in shown)


def test_the_width_of_printable_text_is_that_of_the_terminal_library() -> None:
    printed = [char for char in map(chr, range(0x20000)) if t.printable(char) == char]
    assert {char for char in printed if cell_width(char) != cell_len(char)} == set()
    assert cell_width("层.q_proj") == cell_len("层.q_proj") == 9


@given(st.text(st.characters(codec="ascii", categories=("L", "N", "P"))))
def test_ordinary_names_stay_as_they_are(text: str) -> None:
    assert t.printable(text) == text


@given(st.text(max_size=60), st.integers(0, 40), st.booleans())
def test_fitted_text_is_as_wide_as_asked(text: str, width: int, end: bool) -> None:
    assert cell_len(t.fit(t.printable(text), width, end=end)) == width


def test_what_is_too_long_loses_an_end() -> None:
    assert t.fit("self_attn.q_proj", 8) == "self_at…"
    assert t.fit("self_attn.q_proj", 8, end=False) == "….q_proj"


@given(st.floats(0, 1), st.integers(1, 50), st.sampled_from([t.UNICODE, t.PLAIN]))
def test_a_bar_fills_its_width_and_shows_the_least_effect(
    share: float, width: int, glyphs: t.Glyphs
) -> None:
    drawn = t.bar(share, width, glyphs)
    assert len(drawn) == width
    assert bool(drawn.strip()) == (share > 0)


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=300), st.integers(1, 200))
def test_joined_bins_keep_the_total(counts: list[int], bins: int) -> None:
    joined = t.rebinned(counts, bins)
    assert sum(joined) == sum(counts)
    assert len(joined) <= bins


@pytest.mark.parametrize(
    ("name", "block", "shown"),
    [
        ("model.layers.0.mlp.down_proj", 0, "0 mlp.down_proj"),
        ("transformer.h.11.attn.c_attn", 11, "11 attn.c_attn"),
        ("model.embed_tokens", -1, "  embed_tokens"),
        ("lm_head", -1, "  lm_head"),
        ("strange", 3, "3 strange"),
    ],
)
def test_short_names(name: str, block: int, shown: str) -> None:
    assert t.short_name(name, block) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0884, ".09"), (-0.5, "-.50"), (1.0, "1.00"), (12.34, "12.3"), (1234.4, "1234"),
     (0.0, ".00"), (-0.001, "-1e-3"), (0.0049, "5e-3"), (0.005, ".01"), (120_000, "1e5"),
     (math.nan, "nan"), (-math.inf, "-inf")],
)  # fmt: skip
def test_short_numbers(value: float, shown: str) -> None:
    assert n.short(value) == shown


def test_figures() -> None:
    assert n.perplexity(26.1683) == "26.17"
    assert n.perplexity(12_345.6) == "12,346"
    assert n.percent(0.068) == "6.8%"
    assert n.percent(0.0041) == ".41%"
    assert [n.count(each) for each in (37, 16_384, 4_130_000, 8e9)] == ["37", "16k", "4.1M", "8B"]
    assert [n.size(each) for each in (12, 2_600_000, 16.1e9)] == ["12 B", "2.6 MB", "16.1 GB"]
    assert [n.clock(s) for s in (11.2, 3600, math.nan)] == ["0:12", "1:00:00", ""]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, False),
        ({"LANG": "en_US.UTF-8", "TERM": "xterm"}, False),
        ({"LANG": "de_DE.ISO-8859-1"}, True),
        ({"LANG": "en_US.UTF-8", "LC_ALL": "C"}, True),
        ({"LANG": "C", "LC_CTYPE": "en_US.UTF-8"}, False),
        ({"LANG": "C", "LC_CTYPE": "C.UTF-8"}, True),  # so Python has it where the locale is C
        ({"LANG": "en_US.UTF-8", "TERM": "linux"}, True),
    ],
)
def test_where_only_ascii_can_be_drawn(environ: dict[str, str], expected: bool) -> None:
    assert t.only_ascii(environ) is expected


def test_half_an_interval_has_no_more_places_than_mean_something() -> None:
    shown = [n.margin(half) for half in (0.004, 0.05, 1.5, 12.34, 108.0)]
    assert shown == [".004", ".05", "1.50", "12.3", "108"]


def test_a_difference_of_bits_that_shows_as_zero_is_none() -> None:
    assert n.bits_more(0.336) == "for .34 bits per weight more"
    assert n.bits_more(-2.0) == "for 2.00 bits per weight less"
    assert {n.bits_more(each) for each in (0.0, 0.004, -0.004)} == {"at the same size"}


def test_what_is_rounded_to_nothing_has_no_minus() -> None:
    assert figure(-0.0004, 3) == ".000"
    assert figure(-0.0005001, 3) == "-.001"
    assert share(-0.00001) == ".00%"
    assert t.signed_change(-0.0004, 0.01, t.UNICODE) == "+ .000 ± .010"
    assert t.signed_change(-0.0006, 0.01, t.UNICODE) == "- .001 ± .010"
