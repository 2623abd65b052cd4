"""Completing a format as it is typed, and explaining what was typed."""

from __future__ import annotations

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import FormatError
from engine.formats.catalogue import BASES, METHODS
from engine.formats.completion import KEPT, TYPICAL, complete_format, explain_format
from engine.formats.grammar import parse_format, why_not_built
from engine.formats.storage import stored_bits

PIECES = st.sampled_from(
    [*BASES, *METHODS, *"-+:=.%05g", "-g64", "-sym", "-asym", "-channel", ":online", ":damp="]
)


def texts(typed: str, limit: int = 100) -> list[str]:
    return [each.text for each in complete_format(typed, limit)]


def parses(text: str) -> bool:
    try:
        parse_format(text)
    except FormatError:
        return text == KEPT
    return True


def begins_a_format(text: str) -> bool:
    """By trying what may follow a key: a number."""
    return parses(text) or any(parses(text + number) for number in (".5", "1%"))


@given(st.lists(PIECES).map("".join) | st.text(max_size=20))
def test_every_candidate_is_a_format_or_begins_one(typed: str) -> None:
    found = complete_format(typed, 200)
    assert len({each.text for each in found}) == len(found)
    for each in found:
        assert begins_a_format(each.text), each
        assert each.says
        assert each.says.isprintable()


@given(st.lists(PIECES, max_size=4).map("".join))
def test_what_is_a_format_already_comes_first(typed: str) -> None:
    if parses(typed) and (found := complete_format(typed)):
        assert found[0].text == typed


@pytest.mark.parametrize("name", [name for name in BASES if name != "e8-2"])
def test_every_format_is_reached_letter_by_letter(name: str) -> None:
    for length in range(1, len(name) + 1):
        assert name in texts(name[:length]), name[:length]


def test_options_of_a_group_are_completed() -> None:
    assert texts("int4-g") == ["int4-g32", "int4-g64", "int4-g128", "int4-g256"]
    assert texts("int4-g1")[:2] == ["int4-g1", "int4-g128"]
    assert texts("int4-g128-") == ["int4-g128-sym", "int4-g128-asym"]
    assert "int4-channel" in texts("int4-c")
    assert texts("nf4-") == ["nf4-g32", "nf4-g64", "nf4-g128", "nf4-g256"]
    assert "fp8-e4m3-block128" in texts("fp8-e4m3-")
    assert texts("nf4:") == ["nf4:dq"]
    assert texts("e8") == ["e8-2+hadamard"]


def test_methods_and_their_keys_are_completed() -> None:
    assert texts("int4-g128+g") == ["int4-g128+gptq"]
    assert texts("int4+gptq:") == ["int4+gptq:actorder", "int4+gptq:static", "int4+gptq:damp="]
    assert texts("int4-channel+gptq:s") == []  # there are no groups to fix
    assert "int4+gptq:damp=.02:actorder" in texts("int4+gptq:damp=.02")
    assert texts("kmeans3:") == ["kmeans3:sparse="]
    assert texts("int8+smooth.5:") == ["int8+smooth.5:online"]
    assert "int4-sym+hqq" not in texts("int4-sym+")
    assert not [text for text in texts("int4+awq") if text.endswith("+awq+awq")]


def test_what_can_be_used_comes_before_what_is_not_built() -> None:
    for typed in ("", "i", "int4", "f", "int8-"):
        built = [
            text == KEPT or (parses(text) and why_not_built(parse_format(text)) is None)
            for text in texts(typed)
        ]
        assert built == sorted(built, reverse=True), typed
    assert complete_format("")[0].text == "int4"
    assert "not built yet" in complete_format("int8+hadamard+outlier6")[0].says


@pytest.mark.parametrize("text", ["int4-g128", "int3-g32", "int8", "nf4:dq", "q4_k"])
def test_bits_are_those_that_are_stored(text: str) -> None:
    bits = stored_bits(parse_format(text), TYPICAL) / prod(TYPICAL)
    says = complete_format(text)[0].says
    assert float(says.split()[0]) == pytest.approx(bits, abs=0.005)


def test_no_more_than_asked_for_and_in_lower_case() -> None:
    assert len(complete_format("int4", 3)) == 3
    assert complete_format("int4", 0) == []
    assert len(complete_format("")) == 12
    assert texts("int4-g3")[:2] == ["int4-g3", "int4-g32"]
    assert texts(" INT4-G3") == texts("int4-g3")
    assert texts("zz") == []


@pytest.mark.parametrize(
    ("text", "shape", "canonical", "says"),
    [
        ("INT4 ", None, "int4-g128", "4.16 bit"),
        ("int4", (8, 100), "int4-g128", "4.20 bit"),
        ("kept", (8, 100), "kept", "left in the checkpoint's dtype"),
        ("", None, None, "int4-g128"),
        ("int44", None, None, "int44"),
        ("int8+hadamard+outlier6", None, None, "not yet built"),
        ("int4+clip+hqq", None, None, "use one of them"),
        ("int4", (0, 4), None, "no values"),
        ("int4", (4,), None, "[4]"),
    ],
)
def test_a_format_is_explained(
    text: str, shape: tuple[int, ...] | None, canonical: str | None, says: str
) -> None:
    found, sentence = explain_format(text, shape)
    assert found == canonical
    assert says in sentence


@given(st.text(max_size=30))
def test_any_text_is_explained(text: str) -> None:
    canonical, sentence = explain_format(text, (128, 128))
    assert sentence
    assert sentence.isprintable()
    assert canonical is None or canonical == KEPT or str(parse_format(canonical)) == canonical


@pytest.mark.parametrize("shape", [(8, 100), (3072, 256), (8, 384, 256)])
@pytest.mark.parametrize("text", ["int4", "int4-g64", "int3-g128", "int8"])
def test_completion_and_explanation_tell_the_same_bits(shape: tuple[int, ...], text: str) -> None:
    says = complete_format(text, 1, shape)[0].says
    assert says == explain_format(text, shape)[1].partition(": ")[2].removesuffix(" per weight")
    assert float(says.split()[0]) == pytest.approx(
        stored_bits(parse_format(text), shape) / prod(shape), abs=0.005
    )
    assert len(says.split()[0].partition(".")[2]) in (0, 2)


def test_what_the_layer_cannot_hold_comes_last_with_its_reason() -> None:
    assert complete_format("q4_k", 1)[0].usable
    (found,) = complete_format("q4_k", 1, (8, 100))
    assert not found.usable
    assert "rows of 100 do not divide" in found.says
    usable = [each.usable for each in complete_format("", 50, (8, 100))]
    assert usable == sorted(usable, reverse=True)
    assert False in usable


def test_a_key_that_waits_for_its_number_can_be_chosen() -> None:
    (found,) = [each for each in complete_format("kmeans3:") if each.text == "kmeans3:sparse="]
    assert found.usable


@pytest.mark.parametrize("text", ["int4 +clip", " int4 + clip ", "INT4+ clip", "int4+clip"])
def test_blanks_around_marks_are_ignored(text: str) -> None:
    canonical, says = explain_format(text)
    assert canonical == "int4-g128+clip"
    assert "4.16 bits per weight" in says
    assert complete_format(text, 1)[0].text == "int4+clip"
