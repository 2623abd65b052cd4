"""Bytes of the cache of keys and values beside an artefact's weights."""

from __future__ import annotations

import math

from engine import protocol as p
from engine.errors import InfeasibleError
from engine.session.state import Session


def cache_bytes(session: Session, budget: p.Budget) -> int:
    """Bytes of cached keys and values; 0 without a context.

    Raises:
        InfeasibleError: the checkpoint's configuration does not say how large they are.
    """
    if not budget.context:
        return 0
    blocks = session.checkpoint.cache if session.checkpoint is not None else None
    if blocks is None:
        raise InfeasibleError(
            "config.json does not say how many heads and dimensions keys and values have, so the "
            "size of the cache is not known: leave --context out, and take it off --gib"
        )
    values = sum(
        each.blocks * each.values * min(budget.context, each.window or budget.context)
        for each in blocks
    )
    return math.ceil(values * budget.batch * budget.cache_bits / 8)
