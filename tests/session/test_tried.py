"""Recipes that a session has held: the tree of them, the list, and predictions from it."""

from __future__ import annotations

import msgspec
import pytest

from engine import protocol as p
from engine.errors import UsageError
from engine.recipes.changes import change, named, redo, take, undo
from engine.session import (
    Predictor,
    Session,
    apply,
    decode_session,
    encode_session,
    predict,
    recipe_hash,
    uniform_recipe,
)
from engine.session.tried import differing, layers_of, listed
from tests.qtui import replay as r

Q, K, HEAD = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj", "lm_head"


def opened() -> Session:
    return r.folded(*r.opening(), *r.triaged(), *r.swept(37))


def did(session: Session, event: p.AnyEvent | None) -> None:
    assert event is not None
    apply(session, event, session.seq + 1)


def measured(session: Session, kl: float, size: int = 1000) -> p.RecipeScore:
    """The session's recipe, measured."""
    recipe = recipe_hash(session.recipe())
    started = p.JobStarted(
        job="9", kind="evaluate", title="", command=p.MeasureRecipe(), recipe=recipe
    )
    score = msgspec.structs.replace(
        r.score(recipe, ppl=20, half=0.1), kl=kl, dnll=kl / 2, bytes=size
    )
    did(session, started)
    did(session, p.Learned((recipe,), (score,)))
    return score


def test_what_was_undone_and_done_otherwise_is_still_listed() -> None:
    session = opened()
    did(session, change(session, [Q, K], "int4-g128"))
    measured(session, 0.02, 900)
    did(session, undo(session))
    did(session, change(session, [Q], "int8"))
    measured(session, 0.001, 950)
    assert [layers_of(session, line.number) for line in listed(session)] == [
        {},
        {Q: "int4-g128", K: "int4-g128"},
        {Q: "int8"},
    ]
    assert len(session.history) == 1
    assert [line.current for line in listed(session)] == [False, False, True]
    assert [line.frontier for line in listed(session)] == [False, True, True]


def test_going_back_to_a_recipe_makes_no_other_and_can_be_undone() -> None:
    session = opened()
    did(session, change(session, [Q], "int4-g128"))
    measured(session, 0.02)
    did(session, change(session, [K], "int8"))
    measured(session, 0.03)
    did(session, take(session, 1))
    assert session.recipe() == {Q: "int4-g128"}
    assert session.at == 1
    assert len(session.tried) == 3
    did(session, undo(session))
    assert session.recipe() == {Q: "int4-g128", K: "int8"}
    assert session.at == 2
    did(session, redo(session))
    assert (session.recipe(), session.at) == ({Q: "int4-g128"}, 1)
    assert take(session, 1) is None
    did(session, take(session, 0))
    assert session.recipe() == {}
    with pytest.raises(UsageError, match=r"no recipe 7 was tried: there are 0 to 2"):
        take(session, 7)


def test_the_same_recipe_made_twice_is_one_of_the_list_with_its_name() -> None:
    session = opened()
    did(session, change(session, [Q], "int4-g128"))
    measured(session, 0.02)
    did(session, named(session, 1, "  small   one "))
    did(session, change(session, [Q], "kept"))
    did(session, change(session, [Q], "int4-g128"))
    measured(session, 0.02)
    lines = [line for line in listed(session) if line.number]
    assert [(line.name, line.changed, line.current) for line in lines] == [("small one", 1, True)]
    assert named(session, 1, "small one") is None
    with pytest.raises(UsageError, match="another recipe is called 'small one'"):
        named(session, 2, "small one")


def test_two_recipes_are_compared_layer_by_layer() -> None:
    session = opened()
    did(session, change(session, [Q, K], "int4-g128"))
    did(session, change(session, [HEAD, K], "int8"))
    stored = session.kept(session.index[HEAD])
    assert differing(session, 1, 2) == {K: ("int4-g128", "int8"), HEAD: (stored, "int8")}
    assert differing(session, 0, 2) == {
        Q: (session.kept(session.index[Q]), "int4-g128"),
        K: (session.kept(session.index[K]), "int8"),
        HEAD: (stored, "int8"),
    }


def test_a_snapshot_has_them_and_another_text_forgets_scores_only() -> None:
    session = opened()
    did(session, change(session, [Q], "int4-g128"))
    measured(session, 0.02)
    session = decode_session(encode_session(session))
    assert listed(session)[-1].score is not None
    assert session.model is not None
    did(session, session.model)
    assert listed(session)[-1].score is not None, "the same text"
    other = msgspec.structs.replace(session.model.protocol, text_sha256="1" * 64)
    did(session, msgspec.structs.replace(session.model, protocol=other))
    last = listed(session)[-1]
    assert (last.number, last.score, last.changed) == (1, None, 1)


# --- predictions ---------------------------------------------------------------------------------


def of(session: Session, layer: str, format: str = r.FORMAT) -> float:
    known = session.sensitivity(session.index[layer], p.EffectKey("degrade", format))
    assert known is not None
    return known.kl


def dnll(session: Session, layer: str) -> float:
    known = session.sensitivity(session.index[layer], p.EffectKey("degrade", r.FORMAT))
    assert known is not None
    return known.dnll


def test_a_prediction_starts_from_the_last_measured_recipe() -> None:
    """By hand: what layers do together is in what was measured."""
    session = opened()
    did(session, change(session, [Q, K, HEAD], r.FORMAT))
    first = predict(session)
    assert first is not None
    assert first.kl == pytest.approx(of(session, Q) + of(session, K) + of(session, HEAD))
    score = measured(session, 1.5 * first.kl)
    assert predict(session) == first, "what was predicted stays, beside what was measured"
    did(session, change(session, [HEAD], "kept"))
    after = predict(session)
    assert after is not None
    # As much more than alone as all three were.
    more = min(4.0, score.kl / first.kl)
    assert after.kl == pytest.approx(score.kl - more * of(session, HEAD))
    assert (after.start, after.changed, after.missing, after.filled) == (score.recipe, 1, 0, 0)
    # Not measured, and changed again: both differences count.
    did(session, change(session, [K], "kept"))
    both = predict(session)
    assert both is not None
    assert both.kl == pytest.approx(score.kl - more * (of(session, HEAD) + of(session, K)))
    # What a further change would bring, without making it.
    further = Predictor(session).predict({K: r.FORMAT})
    assert further is not None
    assert further.kl == pytest.approx(after.kl)


def test_a_prediction_starts_from_one_format_everywhere_if_that_is_nearer() -> None:
    """By hand, and the same whether it is asked for before the layers are changed or after."""
    session = opened()
    uniform = uniform_recipe(session, r.FORMAT)
    alone = sum(of(session, layer) for layer in uniform)
    key = recipe_hash(uniform)
    score = msgspec.structs.replace(r.score(key, ppl=30, half=0.1), kl=2 * alone, dnll=0.3)
    did(session, p.Learned((key,), (score,)))
    mix = {layer: session.kept(session.index[layer]) for layer in (Q, K)}
    asked = Predictor(session).predict({**uniform, **mix})
    did(session, change(session, [name for name in uniform if name not in mix], r.FORMAT))
    found = predict(session)
    assert found is not None
    assert found == asked
    assert (found.start, found.changed, found.missing) == (key, 2, 0)
    assert found.kl == pytest.approx(2 * (alone - of(session, Q) - of(session, K)))
    won = sum(dnll(session, layer) for layer in mix)
    assert found.dnll == pytest.approx(0.3 - 2 * won)
    # A few layers in the format are nearer to the model as stored.
    few = Predictor(opened()).predict({Q: r.FORMAT})
    assert few is not None
    assert (few.start, few.changed) == ("", 1)


def test_an_unknown_format_is_filled_in_by_its_weight_error() -> None:
    session = opened()
    did(session, change(session, [Q], "int8"))
    row = session.index[Q]
    weights = session.layers.weights[row]
    assert weights is not None
    ratio = weights.errors["int8"].relative / weights.errors[r.FORMAT].relative
    found = predict(session)
    assert found is not None
    assert (found.missing, found.filled) == (0, 1)
    assert found.kl == pytest.approx(of(session, Q) * ratio**2)
    # With a method it is the error of the format alone; another family's is not known.
    did(session, change(session, [Q], f"{r.FORMAT}+gptq"))
    found = predict(session)
    assert found is not None
    assert found.kl == pytest.approx(of(session, Q))
    assert found.filled == 1
    did(session, change(session, [Q], "e8-2+hadamard"))  # not possible without its method
    found = predict(session)
    assert found is not None
    assert found.missing == 1
    did(session, change(session, [Q], "nf4"))
    found = predict(session)
    assert found is not None
    assert (found.missing, found.vague) == (1, True)
