"""The grammar of the layer table's filter."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import protocol as p
from engine.report.figures import Context
from engine.session import Session, apply
from qtui.views.filter import FilterError, parse_filter
from qtui.views.filter.completion import complete_filter
from qtui.views.filter.words import filter_fields
from tests.qtui import replay as r

DOWN = "model.layers.0.mlp.down_proj"


def estimate(layer: str, kl: float, format: str = r.FORMAT) -> p.Estimate:
    return p.Estimate(
        layer=layer, format=format, kl=kl, kl_se=kl / 5, dnll=kl, dnll_se=kl / 4, tokens=4096
    )


@pytest.fixture
def session() -> Session:
    """Swept to two thirds, the rest estimated but one; two layers changed by hand."""
    session = Session()
    for event in (*r.opening(), *r.triaged(), *r.swept(24)):
        apply(session, event)
    unknown = [
        name for row, name in enumerate(r.names()) if not session.sensitivity(row, r.EFFECTS)
    ]
    facts = tuple(estimate(name, 2e-3) for name in unknown[1:])
    apply(session, p.Learned(tuple(f"e{i}" for i in range(len(facts))), facts))
    apply(session, r.changed(session, [DOWN], r.FORMAT))
    apply(session, r.changed(session, [r.names()[9]], "int8"))
    return session


def shown(text: str, session: Session, marked: frozenset[str] = frozenset()) -> list[str]:
    names = session.layers.names
    fit = parse_filter(text)
    context = Context(session, r.EFFECTS, marked)
    rows = fit.rows(context)
    assert rows == [row for row in range(len(names)) if fit.matches(context, row)]
    return [names[row] for row in rows]


NAMES = r.names()
BY_NAME: dict[str, Callable[[str], bool]] = {
    "": lambda name: True,
    "down": lambda name: "down" in name,
    "DOWN_P": lambda name: "down_p" in name,
    "layers.1 attn": lambda name: "layers.1" in name and "attn" in name,
    "-mlp": lambda name: "mlp" not in name,
    "!mlp": lambda name: "mlp" not in name,
    r"re:\.[02]\..*[qk]_proj$": lambda name: (
        name.endswith(("q_proj", "k_proj")) and (".0." in name or ".2." in name)
    ),
    "-re:layers": lambda name: "layers" not in name,
    "kind:q_proj": lambda name: name.endswith(".q_proj"),
    "kind:q": lambda name: name.endswith(".q_proj"),
    "KIND:*_PROJ": lambda name: name.endswith("_proj"),
    "kind:?_proj": lambda name: name[-7] == "." and name.endswith("_proj"),
    "kind=q": lambda name: False,
    "kind=lm_head": lambda name: name == "lm_head",
    "block:3": lambda name: ".3." in name,
    "block=3": lambda name: ".3." in name,
    "block:1-2": lambda name: ".1." in name or ".2." in name,
    "block<2": lambda name: ".0." in name or ".1." in name,
    "block>=4": lambda name: ".4." in name,
    "-block<4": lambda name: ".4." in name or "layers" not in name,
    "role:head": lambda name: name == "lm_head",
    "role:emb": lambda name: name == "model.embed_tokens",
    "role:linear block:0 -kind:up": lambda name: ".0." in name and "up_proj" not in name,
    "nothing_like_this": lambda name: False,
}


@pytest.mark.parametrize("text", BY_NAME)
def test_terms_about_names_choose_what_a_plain_test_of_the_name_does(
    text: str, session: Session
) -> None:
    assert shown(text, session) == [name for name in NAMES if BY_NAME[text](name)]


def test_states_are_those_of_the_session(session: Session) -> None:
    def known(name: str) -> tuple[bool, bool]:
        row = session.index[name]
        measured = session.sensitivity(row, r.EFFECTS) is not None
        return measured, session.estimate(row, r.EFFECTS) is not None and not measured

    marked = frozenset({DOWN, "lm_head"})
    assert shown("is:changed", session) == [DOWN, NAMES[9]]
    assert shown("-is:changed", session) == shown("is:kept", session)
    assert len(shown("is:kept", session)) == 35
    assert shown("is:marked", session, marked) == [DOWN, "lm_head"]
    assert shown("is:measured", session) == [name for name in NAMES if known(name)[0]]
    assert shown("is:estimated", session) == [name for name in NAMES if known(name)[1]]
    assert len(shown("is:measured", session)) == 24
    assert len(shown("is:estimated", session)) == 12
    assert shown("is:finding", session) == [DOWN]
    assert shown("fmt:int", session) == [DOWN, NAMES[9]]
    assert shown("fmt:int4", session) == [DOWN]
    assert shown("fmt:*-g128", session) == [DOWN]
    assert shown("fmt=int8", session) == [NAMES[9]]
    assert shown("fmt:kept", session) == shown("is:kept", session)


def test_numbers_are_compared_in_their_units(session: Session) -> None:
    def kl(name: str) -> float:
        row = session.index[name]
        fact = session.sensitivity(row, r.EFFECTS) or session.estimate(
            row, p.EffectKey("degrade", r.FORMAT)
        )
        return math.nan if fact is None else fact.kl

    assert shown("kl>1e-3", session) == [name for name in NAMES if kl(name) > 1e-3]
    assert 0 < len(shown("kl>1e-3", session)) < 36
    assert shown("kl=2e-3", session) == [name for name in NAMES if kl(name) == 2e-3]
    errors = {row: w.errors[r.FORMAT].relative for row, w in enumerate(session.layers.weights) if w}
    assert shown("error>=8%", session) == [
        name for row, name in enumerate(NAMES) if errors[row] >= 0.08
    ]
    assert shown("error>=8%", session) == shown("error>=.08", session)
    assert shown("outliers>.1%", session) == [DOWN]
    assert shown("kurtosis>3", session) == [DOWN]
    assert shown("bits<16", session) == [DOWN, NAMES[9]]
    assert shown("bits=4.25", session) == [DOWN, NAMES[9]]
    assert shown("params>=.7M", session) == shown("params>=700k", session)
    assert shown("params>=.7M", session) == ["model.embed_tokens", "lm_head"]
    assert shown("dppl<0", session) == [
        name
        for row, name in enumerate(NAMES)
        if (fact := session.sensitivity(row, r.EFFECTS)) is not None and fact.dppl < 0
    ]
    assert shown("top1<98% is:measured", session) == [
        name
        for row, name in enumerate(NAMES)
        if (fact := session.sensitivity(row, r.EFFECTS)) is not None and fact.top1 < 0.98
    ]


def test_what_is_not_known_fits_no_comparison_and_every_one_turned_round(session: Session) -> None:
    unknown = set(NAMES) - set(shown("is:measured", session)) - set(shown("is:estimated", session))
    assert len(unknown) == 1
    for comparison in ("kl>0", "kl<1", "kl=0"):
        assert not unknown & set(shown(comparison, session))
        assert unknown <= set(shown(f"-{comparison}", session))


def test_a_nan_that_was_measured_fits_no_comparison(session: Session) -> None:
    row = session.index["lm_head"]
    broken = msgspec.structs.replace(r.sensitivity("lm_head", row), kl=math.nan)
    apply(session, p.Learned(("n",), (broken,)))
    assert "lm_head" not in shown("kl>0", session) + shown("kl<1", session)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("knd:q_proj", ("'knd:q_proj'", "no field 'knd'", "did you mean 'kind'")),
        ("kl:3", ("kl is a number", "kl>1e-3")),
        ("kl>", ("nothing after '>'", "kl>1e-3")),
        ("kl>x", ("'x' is not a number", "kl>1e-3")),
        ("kl>nan", ("not a number",)),
        ("kl>5%", ("not a share", "'%'")),
        ("kl>5k", ("'k' does not apply to kl",)),
        ("kl>1e999", ("too large",)),
        ("kl!=3", ("no '!='", "-kl=3")),
        (">3", ("no field before",)),
        ("block:x", ("block:2-5",)),
        ("block:5-2", ("empty", "block:2-5")),
        ("block<2-5", ("block:2-5",)),
        ("block:²", ("block:3",)),
        ("is:chnged", ("'chnged'", "did you mean 'changed'")),
        ("is:ch", ("expected changed, kept",)),
        ("role:router", ("expected linear, conv1d",)),
        ("kind>q", ("'>' does not apply to kind",)),
        ("fmt:", ("nothing after ':'",)),
        ("re:", ("nothing after 're:'",)),
        ("re:(", ("no regular expression",)),
        ("re<3", ("'<' does not apply to re",)),
        ("-", ("nothing after '-'",)),
        ("!", ("nothing after '!'",)),
    ],
)
def test_what_cannot_be_read_is_named_with_what_was_expected(
    text: str, words: tuple[str, ...]
) -> None:
    with pytest.raises(FilterError) as raised:
        parse_filter(f"down {text} block:0")
    assert raised.value.term == text
    assert raised.value.start == 5
    for word in words:
        assert word in str(raised.value)


pieces = st.lists(
    st.sampled_from(
        [
            *filter_fields(),
            ":",
            "<",
            ">",
            "=",
            "<=",
            "-",
            "!",
            " ",
            "3",
            "5%",
            "1M",
            "(",
            "[",
            "*",
            "2-5",
        ]
    )
    | st.text(max_size=4),
    max_size=12,
).map("".join)


@given(pieces | st.text())
def test_any_text_is_a_filter_or_a_filter_error(text: str) -> None:
    session = Session()
    for event in r.opening():
        apply(session, event)
    for completed, says in complete_filter(text, session):
        assert completed != text
        assert says
    wrong: FilterError | None = None
    try:
        fit = parse_filter(text)
    except FilterError as error:
        wrong = error
    if wrong is not None:
        assert text[wrong.start :].startswith(wrong.term)
        return
    assert parse_filter(fit.text) == fit
    shown(text, session)


def test_the_end_of_the_text_is_completed(session: Session) -> None:
    def offers(text: str) -> dict[str, str]:
        return dict(complete_filter(text, session))

    assert offers("k").keys() >= {"kind:", "kl>", "kurtosis>", "kind:k_proj", "is:kept"}
    assert offers("down -ki")["down -kind:"]
    assert offers("kind:q") == {"kind:q_proj": "5 layers"}
    assert offers("fmt:int") == {"fmt:int4-g128": "1 layer", "fmt:int8": "1 layer"}
    assert offers("role:").keys() == {"role:linear", "role:head", "role:embedding"}
    assert offers("is:me").keys() == {"is:measured"}
    assert offers("block:")["block:4"] == "7 layers"
    assert offers("kl").keys() >= {"kl>"}
    assert offers("kl>").keys() == {"kl>1e-3", "kl>="}
    assert offers("bits>").keys() == {"bits>8", "bits>="}
    assert offers("kl>1e-3") == {}
    assert offers("-").keys() >= {"-kind:", "-is:"}
    assert offers("").keys() == {f"{name}:" for name in filter_fields()[:6]} | {
        f"{n}>" for n in filter_fields()[6:]
    }


@given(pieces)
def test_what_is_completed_to_the_end_can_be_read(text: str) -> None:
    session = Session()
    for event in r.opening():
        apply(session, event)
    for completed, _ in complete_filter(text, session):
        if completed[-1] not in ":<>=":
            last = completed.split()[-1]
            parse_filter(last)
