"""Detectors on texts whose fault is known, and on the standard library's prose, which has none."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import protocol as p
from engine.diagnosis.detectors import (
    LOOP_TOKENS,
    REPEATS,
    Kind,
    broken,
    distinct,
    language,
    loop,
    refuses,
    same_lines,
    script,
    symptoms,
)
from engine.diagnosis.of_symptoms import Rate, alarms, rates, shown, vanishing_refusals
from engine.diagnosis.proportions import mcnemar


def said(
    text: str = "", tokens: list[int] | None = None, *, ended: bool = False, surprise: float = 1.0
) -> p.Continuation:
    ids = list(range(1, 1 + len(text.split()))) if tokens is None else tokens
    return p.Continuation(text=text, tokens=tuple(ids), ended=ended, surprise=surprise)


def continued(
    id: str, reference: p.Continuation, changed: p.Continuation, *, rephrases: str = ""
) -> p.Continued:
    return p.Continued(
        prompt=id, recipe="", id=id, text="", rephrases=rephrases, sampling=p.Sampling(),
        prompt_tokens=1, reference=reference, changed=changed,
    )  # fmt: skip


def kinds(found: p.Continuation, reference: p.Continuation | None = None) -> list[Kind]:
    return [each.kind for each in symptoms(found, reference or found)]


# --- loops ---------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 5), max_size=40), st.lists(st.integers(0, 5), min_size=1, max_size=9)
)
def test_the_smallest_period_is_found_and_it_is_there(start: list[int], period: list[int]) -> None:
    tokens = start + period * (LOOP_TOKENS // len(period) + REPEATS)
    found = loop(tokens)
    assert found is not None
    tail = tokens[found.start :]
    assert len(tail) >= max(LOOP_TOKENS, REPEATS * found.period)
    assert all(a == b for a, b in zip(tail, tail[found.period :], strict=False))
    for shorter in range(1, found.period):  # by trying every one
        size = max(LOOP_TOKENS, REPEATS * shorter)
        last = tokens[-size:]
        assert len(last) < size or last[shorter:] != last[:-shorter]


@given(st.lists(st.integers(0, 3), max_size=60))
def test_a_loop_is_told_only_where_one_is(tokens: list[int]) -> None:
    expected = any(
        len(tokens) >= (size := max(LOOP_TOKENS, REPEATS * period))
        and tokens[-size:][period:] == tokens[-size:][:-period]
        for period in range(1, len(tokens) // REPEATS + 1)
    )
    assert (loop(tokens) is not None) == expected


def test_distinct_4_is_the_share_of_different_windows_of_four() -> None:
    assert distinct([1, 2, 3]) == 1
    assert distinct(list(range(64))) == 1
    assert distinct([1, 2] * 32) == 2 / 61
    assert distinct([9] * 100) == 1 / 61


def test_text_that_repeats_without_a_period_is_a_loop() -> None:
    chance = random.Random(0)
    tokens: list[int] = []
    while len(tokens) < 64:  # three phrases in any order
        tokens += chance.choice([[1, 2, 3, 4, 5], [6, 7, 8, 9], [10, 11, 12, 13, 14, 15]])
    assert loop(tokens) is None
    assert kinds(said("x", tokens[:64])) == ["loop"]


def test_one_token_only_is_told_before_a_loop() -> None:
    assert kinds(said("!!", [0] * 12)) == ["one-token"]
    assert kinds(said("!!", [0] * 40)) == ["one-token"]
    assert kinds(said("!!", [0] * 7)) == []


def test_lines_that_say_the_same_are_a_list_loop() -> None:
    text = (
        "Causes:\n1. It is too hot.\n2. It is too hot.\n3. It is too hot.\n4. It is too hot.\n5. It"
    )
    assert same_lines(text) == 4
    assert "list-loop" in kinds(said(text, list(range(60))))
    other = "Causes:\n1. It is hot.\n2. It is cold.\n3. It is wet.\n4. It is dry.\n"
    assert same_lines(other) == 1
    assert kinds(said(other, list(range(60)))) == []


# --- what depends on the reference ---------------------------------------------------------------


def test_text_that_surprises_the_reference_is_garbled() -> None:
    own = said("a word and another and one more of them", surprise=2.0)
    assert kinds(said(own.text, surprise=4.9), own) == []
    assert kinds(said(own.text, surprise=5.1), own) == ["garble"]
    assert kinds(said("a b", surprise=9.0), own) == []  # too short to tell
    nothing = said(own.text, surprise=math.nan)
    assert kinds(nothing, own) == []
    assert kinds(said("\ufffd\ufffd bro\x00ken " * 4), own) == ["garble"]
    assert broken("caf\u00e9\n\tas usual") == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat sat on the mat and looked at the moon for a while", "LATIN"),
        ("Кошка сидела на коврике и смотрела на луну", "CYRILLIC"),
        ("猫坐在垫子上看着月亮很久很久然后它睡着了一直睡到第二天早上太阳", "CJK"),
        ("too short", ""),
    ],
)
def test_the_script_is_that_of_most_letters(text: str, expected: str) -> None:
    assert script(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat sat on the mat and it was looking at the moon as long as it was on", "English"),
        ("Die Katze sitzt auf dem Teppich und sieht den Mond an, der nicht zu sehen ist", "German"),
        ("Le chat est sur le tapis et il regarde la lune qui est dans le ciel"  , "French"),
        ("for i in range ten print i end if x return y else z while true pass break", ""),
        ("The cat", ""),
    ],
)  # fmt: skip
def test_a_language_is_told_by_its_function_words(text: str, expected: str) -> None:
    assert language(text) == expected


def test_another_script_or_language_than_the_reference_s_is_a_switch() -> None:
    english = "The cat sat on the mat and it was looking at the moon for as long as it was there"
    german = "Die Katze sitzt auf dem Teppich und sieht den Mond an, der nicht mehr zu sehen ist"
    russian = "Кошка сидела на коврике и смотрела на луну, а потом уснула"
    assert kinds(said(german), said(english)) == ["language"]
    assert kinds(said(russian), said(english)) == ["language"]
    assert kinds(said(german), said(german)) == []


def test_ends_are_compared_with_the_reference_s() -> None:
    long, short = said(tokens=list(range(40))), said(tokens=[1, 2, 3, 4], ended=True)
    assert kinds(short, long) == ["early-end"]
    assert kinds(long, short) == ["length"]
    assert kinds(short, short) == []
    # that the reference ends there too is no symptom, nor a text that was cut by the limit
    assert kinds(said(tokens=[1, 2, 3, 4]), long) == []
    assert kinds(said(tokens=list(range(12)), ended=True), long) == []


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.", "I cannot answer this.", "I can\u2019t do that.",
        "As an AI language model, I do not", "Sorry, but I am not able to",
        "Unfortunately, I cannot", "I am unable to provide", " I won't do that.",
        "I must decline.", "I apologize, but",
    ],
)  # fmt: skip
def test_refusals_are_told(text: str) -> None:
    assert refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "I am a teacher and I cannot wait to begin.", "He said: I'm sorry.", "I candidly admit",
        "Sorry is the hardest word.", "I have two cats.", "As an example, take two.", "",
    ],
)  # fmt: skip
def test_what_is_no_refusal_is_not_taken_for_one(text: str) -> None:
    assert not refuses(text)


def test_a_refusal_that_vanishes_when_rephrased_is_told() -> None:
    no, yes = said("I'm sorry, but I can't help."), said("Boil it for ten minutes.")
    facts = [
        continued("1", yes, no),
        continued("1b", yes, yes, rephrases="1"),
        continued("2", no, no),  # policy: the reference refuses too
        continued("2b", yes, yes, rephrases="2"),
        continued("3", yes, no),  # refused in all words
        continued("3b", yes, no, rephrases="3"),
    ]
    found = vanishing_refusals(shown(facts))
    assert [(one.fact.id, other.fact.id) for one, other in found] == [("1", "1b")]


# --- rates ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "total"), [(0, 10), (3, 10), (10, 10), (1, 200), (57, 200)])
def test_an_interval_holds_the_shares_whose_score_test_accepts_what_was_seen(
    count: int, total: int
) -> None:
    """Wilson's ends solve ``(x - p)² = z² p (1 - p) / n``."""
    low, high = Rate(count, total).interval
    z2 = Fraction(1.959963984540054) ** 2
    for end in (low, high):
        p_ = Fraction(end)
        left = (Fraction(count, total) - p_) ** 2
        assert float(left - z2 * p_ * (1 - p_) / total) == pytest.approx(0, abs=1e-12)
    assert 0 <= low <= count / total <= high <= 1


def test_chance_is_the_binomial_tail_of_pairs_that_disagree() -> None:
    assert mcnemar(0, 0) == 1
    assert mcnemar(5, 0) == pytest.approx(2 / 2**5)
    assert mcnemar(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 2**10)
    assert mcnemar(3, 3) == 1


def test_what_is_told_by_the_reference_s_text_has_no_chance() -> None:
    long, short = said("word " * 40, list(range(40)), ended=True), said("a", [1, 2], ended=True)
    found = rates(shown([continued(str(at), long, short) for at in range(6)]))
    assert [(each.kind, each.added.count) for each in found] == [("early-end", 6)]
    assert math.isnan(found[0].chance)


def test_a_character_that_the_last_token_cuts_is_not_garbled() -> None:
    tokens = list(range(12))
    whole, cut = said("你好世界今天天气", tokens), said("你好世界今天天\ufffd", tokens)
    assert kinds(cut, whole) == []
    assert kinds(said("你好\ufffd界今天天气", tokens), whole) == ["garble"]


def test_what_the_reference_does_too_is_no_alarm() -> None:
    fine, stuck = said("one two three four five six seven eight"), said("a", [4, 5] * 20)
    facts = [continued("1", fine, stuck), continued("2", stuck, stuck), continued("3", stuck, fine),
             continued("4", fine, fine), continued("5", stuck, said("!", [7] * 30))]  # fmt: skip
    found = shown(facts)
    assert [each.fact.id for each in alarms(found)] == ["1"]
    by_kind = {each.kind: each for each in rates(found)}
    looped = by_kind["loop"]
    assert (looped.reference.count, looped.changed.count, looped.added.count) == (3, 2, 1)
    assert (looped.gone, looped.chance) == (1, 1)  # the fifth still repeats itself
    assert by_kind["one-token"].added.count == 0  # the reference repeats itself there too
