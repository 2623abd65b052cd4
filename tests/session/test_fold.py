"""How events change what a session knows."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from engine import protocol as p
from engine.diagnosis.verdict import verdict
from engine.session import Session, apply, recipe_hash, uniform_recipe
from tests.qtui import replay as r


def test_what_an_earlier_comparison_said_is_forgotten() -> None:
    """Of a journal that an earlier version wrote, and of one that was compared again."""
    opened = p.ArtefactOpened(
        fingerprint="f", name="n", path="/n", layout="gptq", bytes=1, bits_per_weight=4.0,
        bits_all=4.0, version=p.COMPARISON_VERSION,
    )  # fmt: skip
    fact = p.StoredLayer(artefact="f", layer="layer", holds="int4", bits=4.0, shape=(8, 8))
    session = Session()
    apply(session, msgspec.structs.replace(opened, version=p.COMPARISON_VERSION - 1))
    apply(session, p.Learned(("k",), (fact,)))
    assert session.compared == {}
    apply(session, opened)
    apply(session, p.Learned(("k",), (fact,)))
    assert list(session.compared["f"].stored) == ["layer"]


def measured() -> Session:
    """A session in which every layer was measured, and all of the body together."""
    session = r.folded(*r.opening(), *r.triaged(), *r.swept())
    key = recipe_hash(uniform_recipe(session, r.FORMAT))
    score = msgspec.structs.replace(r.score(key, ppl=30, half=0.1), kl=0.5)
    apply(session, p.Learned((key,), (score,)))
    return session


def opened_again(session: Session, settings: p.Settings, versions: dict[str, str]) -> None:
    assert session.model is not None
    model = session.model
    apply(session, p.Opened(source=session.source, settings=settings, versions=versions))
    apply(session, msgspec.structs.replace(model, load_s=9.0))


def test_a_session_that_is_opened_again_says_what_it_said() -> None:
    """Whatever the command is that opens it, and however little of the store it looks up."""
    session = measured()
    before = verdict(session, r.FORMAT)
    assert before is not None
    assert (before.measured, before.kl, before.ppl) == (True, 0.5, 30)
    opened_again(session, session.settings, session.versions)
    assert verdict(session, r.FORMAT) == before
    assert session.partial is None


@pytest.mark.parametrize(
    "otherwise",
    [
        lambda settings, versions: (settings, versions | {"torch": "another"}),
        lambda settings, versions: (
            msgspec.structs.replace(settings, calib="another.txt"),
            versions,
        ),
    ],
)
def test_what_may_have_other_figures_now_is_forgotten_until_the_store_has_it(
    otherwise: Callable[[p.Settings, dict[str, str]], tuple[p.Settings, dict[str, str]]],
) -> None:
    session = measured()
    opened_again(session, *otherwise(session.settings, session.versions))
    assert (session.baseline, session.scores, session.effects.measured) == (None, {}, {})


def test_effects_that_were_calibrated_on_what_a_file_held_before_are_forgotten() -> None:
    session = measured()
    now = p.Calibrated(text="c", text_sha256="a", tokens=9, seq_len=3, windows=3, seed=0)
    apply(session, now)
    apply(
        session, p.Learned(("x",), (r.sensitivity(session.layers.names[0], 0, f"{r.FORMAT}+gptq"),))
    )
    calibrated = p.EffectKey("degrade", f"{r.FORMAT}+gptq")
    plain = set(session.effects.measured) - {calibrated}
    apply(session, now)
    assert set(session.effects.measured) == plain | {calibrated}
    assert session.scores
    apply(session, msgspec.structs.replace(now, text_sha256="b"))
    assert set(session.effects.measured) == plain
    assert not session.scores
