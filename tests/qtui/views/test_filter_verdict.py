"""What is said of a filter while it is typed."""

from __future__ import annotations

import math
import time

import pytest

from engine.report.figures import Context
from engine.session import Session
from qtui.views.filter.verdict import judge_filter
from qtui.views.filter.words import OPERATORS
from tests.qtui import replay as r


@pytest.fixture
def session() -> Session:
    return r.folded(*r.opening(), *r.triaged(), *r.swept())


def largest_error(session: Session) -> float:
    return max(known.errors[r.FORMAT].relative for known in session.layers.weights if known)


def judged(text: str, session: Session) -> tuple[bool, str, str]:
    return judge_filter(text, Context(session, r.EFFECTS))


def test_a_filter_says_how_many_layers_it_leaves(session: Session) -> None:
    assert judged("down", session) == (True, "5 of 37 layers", "")
    assert judged("", session) == (True, "37 of 37 layers", "")
    assert judged("nothing_like_this", session) == (True, "0 of 37 layers", "")


@pytest.mark.parametrize("sign", [">", ">=", "="])
def test_a_number_that_no_layer_reaches_is_told_the_largest(session: Session, sign: str) -> None:
    # Of the replayed sweep the head has the largest KL, .00838.
    ok, says, hint = judged(f"kl{sign}1", session)
    assert (ok, hint) == (True, "")
    assert says == (
        f"0 of 37 layers; kl{sign}1: the largest is .00838 (the column shows thousandths)"
    )


def test_a_share_typed_as_a_percentage_without_its_sign_is_told_so(session: Session) -> None:
    shown = f"{100 * largest_error(session):.1f}%"
    assert judged("error>5", session)[1].endswith(f"error>5: the largest is {shown} (write 5%)")
    assert judged("error>99%", session)[1].endswith(f"error>99%: the largest is {shown}")


def test_counts_and_other_numbers_are_told_in_their_own_form(session: Session) -> None:
    assert judged("params>1B", session)[1].endswith("params>1B: the largest is 786k")
    assert judged("bits>99", session)[1].endswith("bits>99: the largest is 16")


def test_the_largest_itself_is_within_reach(session: Session) -> None:
    assert judged("kl>=.00838", session)[1] == "1 of 37 layers"
    assert "the largest is .00838" in judged("kl>.00838", session)[1]


@pytest.mark.parametrize("text", ["kl<1e-9", "-kl>1e-9", "kl>1e-3 nothing_like_this"])
def test_what_is_within_reach_or_turned_round_is_no_question_of_the_largest(
    session: Session, text: str
) -> None:
    assert "largest" not in judged(text, session)[1]


def test_a_figure_that_is_known_of_no_layer_is_told(session: Session) -> None:
    bare = r.folded(*r.opening())
    for sign in OPERATORS:
        says = judged(f"kl{sign}1", bare)[1]
        assert says == f"0 of 37 layers; kl{sign}1: kl is not known for any layer yet"
    assert "known" not in judged("-kl>1", bare)[1]
    empty = Session()
    assert judge_filter("kl>1", Context(empty, r.EFFECTS)) == (True, "0 of 0 layers", "")
    assert math.isfinite(largest_error(session))


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("kind:", "kind: and last part of the name"),
        ("down -kind=", "kind: and last part of the name"),
        ("kl>", "as in kl>1e-3"),
        ("kl>1e-", "as in kl>1e-3"),
        ("kl>.", "as in kl>1e-3"),
        ("is:cha", "is: and changed"),
        ("role=he", "role: and linear"),
        ("re:", "as in re:down_proj$"),
        ("-", "as in -is:kept"),
    ],
)
def test_a_last_term_that_is_not_finished_is_hinted_at(
    session: Session, text: str, hint: str
) -> None:
    ok, says, found = judged(text, session)
    assert not ok
    assert says.startswith("filter term")
    assert hint in found
    # Once a blank follows, nobody is typing it any more.
    assert judged(f"{text} down", session)[2] == ""


@pytest.mark.parametrize("text", ["kl>x", "is:chxnged", "knd:", "kl>5%", "block:x"])
def test_what_cannot_become_a_term_is_no_hint(session: Session, text: str) -> None:
    ok, says, hint = judged(text, session)
    assert not ok
    assert says
    assert hint == ""


def test_an_expression_that_never_ends_is_named_soon(session: Session) -> None:
    begun = time.thread_time()
    ok, says, hint = judged(r"down re:(\w|\w\w|\w\w\w|\.)+[^\w.]", session)
    assert (ok, hint) == (False, "")
    assert "takes too long to match" in says
    assert time.thread_time() - begun < 1
