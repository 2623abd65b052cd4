"""Alternatives to a format: what a layer could hold instead."""

from __future__ import annotations

import pytest

from engine.errors import FormatError
from engine.formats.alternatives import alternatives
from engine.formats.grammar import parse_built
from engine.formats.storage import why_not_held


def test_every_fix_of_the_field_is_there_and_the_format_itself_first() -> None:
    found = alternatives("int4-g128", (1024, 4096))
    assert found[0] == "int4-g128"
    assert set(found) >= {
        "int4-g64", "int4-g32", "int4-g128+clip", "int4-g128+awq", "int4-g128+gptq",
        "int4-g128+gptq:actorder", "int4-g128+hadamard", "nf4-g64", "kmeans4", "kmeans4:sparse=.5%",
        "int8", "fp8-e4m3", "int8+outlier6+a8", "int8+smooth.5+a8", "e8-2+hadamard", "q4_k", "q4_0",
        "iq4_xs", "iq4_nl", "q3_k",
    }  # fmt: skip
    assert "q8_0" not in found
    assert len(set(found)) == len(found)


def test_quick_ones_come_first_and_those_that_solve_last() -> None:
    found = alternatives("int4-g128", (1024, 4096))
    assert found.index("int4-g64") < found.index("kmeans4") < found.index("int4-g128+awq")
    assert found.index("int4-g128+awq") < found.index("int4-g128+gptq")


@pytest.mark.parametrize("format", ["int3-g128-sym", "nf4", "q4_k", "fp8-e4m3", "kmeans3", "int8"])
def test_all_can_be_held_and_written(format: str) -> None:
    shape = (64, 256)
    for text in alternatives(format, shape):
        assert str(parse_built(text)) == text
        assert why_not_held(parse_built(text), shape) is None


def test_a_group_no_smaller_is_none() -> None:
    assert not {"int4-g128", "int4-g64"} & set(alternatives("int4-g32", (64, 256)))
    assert "int4-g32" in alternatives("int4-channel", (64, 64))
    assert "int4-g64" not in alternatives("int4-channel", (64, 64))


def test_a_format_that_cannot_be_held_is_refused() -> None:
    with pytest.raises(FormatError, match="do not divide"):
        alternatives("q4_k", (64, 100))
