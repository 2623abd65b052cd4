"""How events change what a session knows."""

from __future__ import annotations

import msgspec

from engine import protocol as p
from engine.session import Session, apply


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
