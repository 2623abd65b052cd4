"""Layers by what a format costs in each."""

from __future__ import annotations

from engine.session import KnownEffects, Session


def worst_layers(session: Session, format: str) -> list[str]:
    """Layers whose effect is known, the worst first.

    Args:
        session: with effects.
        format: canonical.
    """
    effects = KnownEffects(session)
    kl = {}
    for name in session.layers.names:
        if (known := effects.known(name, format)) is not None:
            kl[name] = max(0.0, known.kl)
    return sorted(kl, key=lambda name: -kl[name])
